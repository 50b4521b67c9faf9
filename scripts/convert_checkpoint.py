"""Convert somebody else's checkpoint to one that pretraining (Quick Tuning) and finetuning start from.

    python scripts/convert_checkpoint.py moco_v2_800ep_pretrain.pth.tar converted/moco_v2_800

The format is recognised; docs/checkpoints.md lists them all. Reading runs nothing that the file contains.
"""

import pathlib

import _cli
from absl import flags

_cli.flags.DEFINE_string("format", None, "The source's format, if it is not to be recognised (see docs/checkpoints.md).")
_cli.flags.DEFINE_integer("heads", None, "Attention heads of a ViT, where the format does not tell.", lower_bound=1)
_cli.flags.DEFINE_list("stage_sizes", None, "Allow a ResNet of these numbers of blocks, e.g. 1,1,1,1.")
_cli.flags.DEFINE_enum("input", None, ["imagenet", "half", "unit"], "Input normalisation, if the format is wrong about it.")

from cp2_jax.convert.importing import import_checkpoint  # noqa: E402
from cp2_jax.runs.checkpoints import CheckpointError, write_variables  # noqa: E402


def main(argv):
    options = flags.FLAGS
    if len(argv) != 3:
        _cli.fail("usage: convert_checkpoint.py INPUT OUTPUT [--format F] [--heads N]", 2)
    output = pathlib.Path(argv[2])
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} exists: name another output, or remove it")
    if options.stage_sizes and not all(size.isdigit() for size in options.stage_sizes):
        _cli.fail("--stage_sizes takes numbers, e.g. 3,4,6,3", 2)
    imported = import_checkpoint(
        argv[1],
        format=options.format,
        heads=options.heads,
        stage_sizes=tuple(map(int, options.stage_sizes)) if options.stage_sizes else None,
        input=options.input,
    )
    print(imported.report)
    write_variables(output, imported.variables, imported.meta)
    print(f"\nwritten to {output}")


if __name__ == "__main__":
    _cli.run(main)
