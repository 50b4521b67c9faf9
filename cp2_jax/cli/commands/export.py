"""`cp2 export`: a model of ours as files that other programs read."""

from cp2_jax.cli import command

TEXT = """\
Export a model: a run (its newest step), one step's folder, or a converted
checkpoint.

  cp2 export runs/voc voc.pth                     # PyTorch, for MMSegmentation
  cp2 export runs/photos backbone.safetensors --layout torchvision"""

LAYOUTS = ("mmseg", "merged", "torchvision", "timm")


def _options(made):
    command.place(made, "checkpoint", "the model")
    command.place(made, "output", "file to write: OUTPUT.pth or OUTPUT.safetensors")
    made.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="mmseg",
        help="mmseg: backbone and head under MMSegmentation's names; merged: the same without prefixes, which the "
        "original's `pretrained` loads; torchvision, timm: the backbone alone (%(default)s)",
    )
    command.switch(made, "--projection", True, "keep the projection (contrast_conv) beside the head")


def _run(arguments):
    from cp2_jax.convert import exporting
    from cp2_jax.runs.checkpoints import read_variables

    variables, meta = read_variables(arguments.checkpoint)
    arrays = exporting.state_dict(variables, meta, arguments.layout, arguments.projection)
    exporting.write(arguments.output, arrays)
    size = sum(array.nbytes for array in arrays.values()) / 2**20
    print(f"{len(arrays)} tensors, {size:.1f} MiB, written to {arguments.output}")
    if arguments.layout in ("mmseg", "merged") and (text := exporting.mmsegmentation(meta)):
        print(f"in a config of MMSegmentation:\n{text}")


COMMAND = command.Command(TEXT, _options, _run)
