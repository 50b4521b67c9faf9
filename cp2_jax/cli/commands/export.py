"""`cp2 export`: a model of ours as files that other programs read."""

from cp2_jax.cli import command
from cp2_jax.interface.layouts import LAYOUTS

TEXT = """\
Export a model: a run (its newest step), one step's folder, or a converted
checkpoint.

  cp2 export runs/voc voc.pth                     # PyTorch, for MMSegmentation
  cp2 export runs/photos backbone.safetensors --layout torchvision
  cp2 export runs/voc voc.stablehlo --size 512,512     # runs with JAX alone
  cp2 export runs/voc voc.onnx --size 512,512          # runs with onnxruntime

docs/production.md shows how each is loaded."""


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


def _run(arguments):
    from cp2_jax.interface import exporting

    exporting.export(
        arguments.checkpoint,
        arguments.output,
        layout=arguments.layout,
        projection=arguments.projection,
        size=arguments.size,
        features=arguments.features,
    )


COMMAND = command.Command(TEXT, _options, _run)
