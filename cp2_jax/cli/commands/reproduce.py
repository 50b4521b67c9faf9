"""`cp2 reproduce`: the paper's tables, cell by cell."""

import pathlib

from cp2_jax.cli import command
from cp2_jax.cli.errors import UsageError

TEXT = """\
The paper's tables, cell by cell (docs/results.md).

  cp2 reproduce list --checkpoints DIR --data PASCAL=/data/VOCdevkit/VOC2012
  cp2 reproduce run table1 --row "CP2 QT r.800" --column PASCAL \\
      --workdir DIR --checkpoints DIR --data ImageNet=/data/imagenet/train \\
      --data PASCAL=/data/VOCdevkit/VOC2012
  cp2 reproduce collect DIR [--output DIR]

`list` shows every cell, what it needs and how far it is. `run` converts,
pretrains, finetunes and evaluates; run again, it goes on where it was.
`collect` sets results beside the paper's: DIR is the work directory of `run`
or of `cp2 study`."""


def _options(made):
    made.add_argument("action", choices=["list", "run", "collect"], help="see above")
    made.add_argument("what", nargs="?", type=command.path, help="table of `run`, e.g. table1; folder of `collect`")
    made.add_argument("--row", help="row, as `list` shows it")
    made.add_argument("--column", help="column, as `list` shows it")
    made.add_argument(
        "--workdir", type=command.local, default="runs/reproduce", help="where stages and results are (%(default)s)"
    )
    made.add_argument(
        "--checkpoints",
        metavar="DIR",
        type=command.path,
        help="others' checkpoints, under the names that `list` shows",
    )
    made.add_argument(
        "--data",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help="a data set: ImageNet, PASCAL, Cityscapes, ADE20k, attention; may be repeated",
    )
    made.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a config, e.g. pretrain.epochs=1; such results are kept apart; may be repeated",
    )
    made.add_argument("--seeds", metavar="N,N", type=_numbers, help="e.g. 0,1,2 (0; for Table 7 0,1,2)")
    made.add_argument(
        "--output",
        metavar="PATH",
        type=command.local,
        help="folder that `collect` writes to (the work directory), or Markdown page that `list` writes",
    )
    made.add_argument("--json", metavar="FILE", type=command.local, help="`list`: also write this file")


def _numbers(text):
    return tuple(int(part) for part in text.split(","))


_numbers.__name__ = "list of numbers, such as 0,1,"


def _run(arguments):
    from cp2_jax.reproduce import chain, listing
    from cp2_jax.reproduce.place import Place, parse_changes
    from cp2_jax.reproduce.recipes import recipe

    data = (text.partition("=")[::2] for text in arguments.data)
    place = Place(
        workdir=pathlib.Path(arguments.workdir).absolute(),
        checkpoints=pathlib.Path(arguments.checkpoints).absolute() if arguments.checkpoints else None,
        data={name: command.path(path) for name, path in data},
        changes=parse_changes(arguments.set),
    )
    if arguments.action != "list" and not arguments.what:
        raise UsageError(f"reproduce {arguments.action}: say which {'table' if arguments.action == 'run' else 'folder'}")
    if arguments.action == "list":
        print(listing.text(place))
        if arguments.json:
            listing.write_json(arguments.json, place)
        if arguments.output:
            listing.write_markdown(arguments.output, place)
    elif arguments.action == "collect":
        print(listing.collect(arguments.what, arguments.output or arguments.what))
    else:
        cell = listing.find(arguments.what, arguments.row, arguments.column)
        for seed in arguments.seeds or range(recipe(cell).seeds):
            result = chain.run(cell, seed, place)
            where = f"{arguments.what}, {cell.row}, {cell.column}, seed {seed}"
            print(f"{where}: {result['value']:.1f} mIoU (paper {cell.value})")


COMMAND = command.Command(TEXT, _options, _run)
