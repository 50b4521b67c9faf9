"""The paper's tables, cell by cell.

    python scripts/reproduce.py list [--workdir DIR --checkpoints DIR --data PASCAL=… --json FILE]
    python scripts/reproduce.py run table1 --row "CP2 QT r.800" --column PASCAL --workdir DIR --checkpoints DIR \
        --data ImageNet=/data/imagenet/train --data PASCAL=/data/VOCdevkit/VOC2012
    python scripts/reproduce.py collect DIR [--output DIR]

`run` converts, pretrains, finetunes and evaluates; run again, it goes on where it was. `collect` takes the work directory
of `run` or of study.py. See docs/results.md.
"""

import pathlib

import _cli
from absl import flags

flags.DEFINE_string("row", None, "Row, as `list` shows it.")
flags.DEFINE_string("column", None, "Column, as `list` shows it.")
flags.DEFINE_string("workdir", "runs/reproduce", "Stages and results.")
flags.DEFINE_string("checkpoints", None, "Folder of others' checkpoints, under the names that `list` shows.")
flags.DEFINE_multi_string("data", [], "NAME=PATH of a data set: ImageNet, PASCAL, Cityscapes, ADE20k, attention.")
flags.DEFINE_multi_string("set", [], "Change a config, e.g. pretrain.epochs=1; such results are kept apart.")
flags.DEFINE_list("seeds", None, "Seeds, e.g. 0,1,2; default: 0, for Table 7 0,1,2.")
flags.DEFINE_string("output", None, "Where `collect` writes; default: the work directory.")
flags.DEFINE_string("json", None, "`list`: also write this file.")

from cp2_jax.reproduce import chain, listing  # noqa: E402
from cp2_jax.reproduce.recipes import recipe  # noqa: E402


def main(argv):
    values = flags.FLAGS
    place = chain.Place(
        checkout=pathlib.Path(__file__).resolve().parents[1],
        workdir=pathlib.Path(values.workdir).absolute(),
        checkpoints=pathlib.Path(values.checkpoints).absolute() if values.checkpoints else None,
        data=dict(text.partition("=")[::2] for text in values.data),
        changes=chain.parse_changes(values.set),
    )
    match argv[1:]:
        case ["list"]:
            print(listing.text(place))
            if values.json:
                listing.write_json(values.json, place)
        case ["run", table]:
            cell = listing.find(table, values.row, values.column)
            count = recipe(cell).seeds
            for seed in map(int, values.seeds or range(count)):
                result = chain.run(cell, seed, place)
                print(f"{table}, {cell.row}, {cell.column}, seed {seed}: {result['value']:.1f} mIoU (paper {cell.value})")
        case ["collect", folder]:
            print(listing.collect(folder, values.output or folder))
        case _:
            _cli.fail(f"usage:{__doc__.partition('.')[2]}", 2)


if __name__ == "__main__":
    _cli.run(main)
