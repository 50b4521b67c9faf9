"""Make the data sets that can be made here.

    python scripts/prepare_data.py demo --output data/demo
    python scripts/prepare_data.py demo --output data/demo --sheet scenes.png    # and a picture of some scenes

Run again, a complete data set is left alone and a half-written one is replaced.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse  # noqa: E402

from cp2_jax.data import demo  # noqa: E402
from cp2_jax.data.sources import TfdsSource  # noqa: E402


def prepare_demo(options) -> None:
    """Write the demo scenes, read them back, and print where they are and how many."""
    sizes = {key: getattr(options, key) for key in ("size", "train", "labelled", "validation", "seed")}
    path = demo.prepare(options.output, **sizes)
    print(path)
    for split in ("train", "train_labelled", "validation"):
        print(f"{split}: {len(TfdsSource(path, split, ('image', 'segmentation_mask')))} scenes")
    if options.sheet:
        demo.contact_sheet(options.sheet, size=options.size, seed=options.seed)
        print(f"some validation scenes above their masks: {options.sheet}")


def parser() -> argparse.ArgumentParser:
    """One subcommand for each data set."""
    main = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = main.add_subparsers(required=True, metavar="DATASET")
    command = commands.add_parser("demo", help="textured objects on textured backgrounds, five classes, exact masks")
    command.add_argument("--output", required=True, help="folder to write to; the value of data.path")
    command.add_argument("--size", type=int, default=64, help="side of the scenes in pixels (%(default)s)")
    command.add_argument("--train", type=int, default=4000, help="scenes for pretraining (%(default)s)")
    command.add_argument("--labelled", type=int, default=40, help="scenes for finetuning (%(default)s)")
    command.add_argument("--validation", type=int, default=200, help="scenes for evaluation (%(default)s)")
    command.add_argument("--seed", type=int, default=0, help="another seed, other scenes (%(default)s)")
    command.add_argument("--sheet", help="also write this PNG of validation scenes above their masks")
    command.set_defaults(run=prepare_demo)
    return main


if __name__ == "__main__":
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"prepare_data.py: {error}")
