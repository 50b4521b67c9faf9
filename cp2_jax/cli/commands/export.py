"""`cp2 export`: a model of ours as files that other programs read."""

import pathlib

from cp2_jax.cli import command
from cp2_jax.cli.errors import UsageError

TEXT = """\
Export a model: a run (its newest step), one step's folder, or a converted
checkpoint.

  cp2 export runs/voc voc.pth                     # PyTorch, for MMSegmentation
  cp2 export runs/photos backbone.safetensors --layout torchvision
  cp2 export runs/voc voc.stablehlo --size 512,512     # runs with JAX alone
  cp2 export runs/voc voc.onnx --size 512,512          # runs with onnxruntime

docs/production.md shows how each is loaded."""

# Layout → the suffixes of its files; the first layout of a suffix is its default.
LAYOUTS = {
    "mmseg": (".pth", ".safetensors"),
    "merged": (".pth", ".safetensors"),
    "torchvision": (".pth", ".safetensors"),
    "timm": (".pth", ".safetensors"),
    "stablehlo": (".stablehlo", ".bin"),
    "onnx": (".onnx",),
}


def _options(made):
    command.place(made, "checkpoint", "the model")
    command.place(made, "output", "file to write: .pth, .safetensors, .stablehlo or .onnx")
    made.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="mmseg: backbone and head under MMSegmentation's names (.pth and .safetensors without --layout); merged: the "
        "same without prefixes, which the original's `pretrained` loads; torchvision, timm: the backbone alone; "
        "stablehlo, onnx: the whole model as a program",
    )
    command.switch(made, "--projection", True, "PyTorch: keep the projection (contrast_conv) beside the head")
    made.add_argument(
        "--size", metavar="H,W", type=_size, default=(512, 512), help="programs: height and width of the images (512,512)"
    )
    made.add_argument(
        "--features",
        choices=["backbone", "head", "projection", "logits"],
        help="programs: features instead of class maps, and which",
    )


def _size(text):
    height, width = map(int, text.split(","))
    return height, width


_size.__name__ = "height and width, such as 512,512,"


def _layout(arguments) -> str:
    suffix = pathlib.PurePath(arguments.output).suffix
    fitting = [layout for layout, suffixes in LAYOUTS.items() if suffix in suffixes]
    if not arguments.layout and not fitting:
        raise UsageError(f"{arguments.output}: --layout tells what to write, or a name in .pth, .stablehlo, .onnx, …")
    return arguments.layout or fitting[0]


def _run(arguments):
    from cp2_jax.convert import exporting
    from cp2_jax.interface import kinds
    from cp2_jax.runs.checkpoints import read_variables

    kinds.refuse_images(arguments.checkpoint)
    layout = _layout(arguments)
    if layout in ("stablehlo", "onnx"):
        from cp2_jax.interface.exporting import export_program

        options = {"layout": layout, "size": arguments.size, "features": arguments.features}
        export_program(arguments.checkpoint, arguments.output, **options)
        return
    variables, meta = read_variables(arguments.checkpoint)
    arrays = exporting.state_dict(variables, meta, layout, arguments.projection)
    exporting.write(arguments.output, arrays)
    size = sum(array.nbytes for array in arrays.values()) / 2**20
    print(f"{len(arrays)} tensors, {size:.1f} MiB, written to {arguments.output}")
    if layout in ("mmseg", "merged") and (text := exporting.mmsegmentation(meta)):
        print(f"in a config of MMSegmentation:\n{text}")


COMMAND = command.Command(TEXT, _options, _run)
