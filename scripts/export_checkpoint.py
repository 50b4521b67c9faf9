"""Export a checkpoint of ours to PyTorch's names, as .pth or .safetensors.

    python scripts/export_checkpoint.py runs/cp2_r50_aspp cp2_r50_aspp.pth --layout mmseg

The checkpoint is a work directory (its newest step), one step's directory, or a converted checkpoint.
"""

import _cli
from absl import flags

_cli.flags.DEFINE_enum(
    "layout",
    "mmseg",
    ["mmseg", "merged", "torchvision", "timm"],
    "mmseg: backbone and head, MMSegmentation's names; merged: the same without prefixes, which the original's "
    "`pretrained` loads; torchvision, timm: the backbone alone.",
)
_cli.flags.DEFINE_bool("projection", True, "Keep the projection (contrast_conv) beside the head.")

from cp2_jax.convert import exporting  # noqa: E402
from cp2_jax.runs.checkpoints import read_variables  # noqa: E402


def main(argv):
    if len(argv) != 3:
        _cli.fail("usage: export_checkpoint.py CHECKPOINT OUTPUT.pth|OUTPUT.safetensors [--layout L]", 2)
    variables, meta = read_variables(argv[1])
    arrays = exporting.state_dict(variables, meta, flags.FLAGS.layout, flags.FLAGS.projection)
    exporting.write(argv[2], arrays)
    print(f"{len(arrays)} tensors, {sum(a.nbytes for a in arrays.values()) / 2**20:.1f} MiB, written to {argv[2]}")


if __name__ == "__main__":
    _cli.run(main)
