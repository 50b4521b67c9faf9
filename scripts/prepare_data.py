"""Prepare and check data sets.

    python scripts/prepare_data.py demo --output data/demo
    python scripts/prepare_data.py imagenet --train ILSVRC2012_img_train.tar --output data/imagenet --shorter-side 256
    python scripts/prepare_data.py voc --input VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset --check
    python scripts/prepare_data.py folder --input my_data --check --output data/mine

voc, cityscapes, ade20k, camvid and folder are used from the layout they are downloaded in (docs/data.md): --check reads
every pair, prints a table and fails if anything is wrong; --output writes them as one TFDS array_record data set. Run
again, what is complete is left alone and what is half-written is replaced.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse  # noqa: E402
import importlib  # noqa: E402

from cp2_jax.data import demo  # noqa: E402
from cp2_jax.data.images.sources import SourceError, TfdsSource  # noqa: E402
from cp2_jax.data.labelled import check, classes, examples  # noqa: E402
from cp2_jax.data.prepare import imagenet, voc, writing  # noqa: E402

# Images of the training and validation splits of the whole data sets.
EXPECTED = {"voc": (10_582, 1_449), "cityscapes": (2_975, 500), "ade20k": (20_210, 2_000), "camvid": (367, 101)}
LAYOUT = ("images", "labels", "image_suffix", "label_suffix", "split", "eval_split", "classes")


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


def prepare_images(options) -> None:
    """Write images for pretraining."""
    inputs = {split: getattr(options, split) for split in ("train", "validation") if getattr(options, split)}
    path, unreadable = imagenet.prepare_images(options.output, inputs, options.shorter_side, options.quality)
    for split in inputs:
        print(f"{split}: {len(TfdsSource(path, split)):,d} images in {path}")
        for problem in unreadable[split]:
            print(f"  not readable, kept as it is: {problem}")


def prepare_labelled(options) -> None:
    """Convert SBD's masks, check, write."""
    config = importlib.import_module(f"configs.finetune_{options.dataset}").get_config()
    data = config.data
    data.path = options.input
    data.update({key: getattr(options, key) for key in LAYOUT if getattr(options, key) is not None})
    classes.resolve(config)
    if getattr(options, "sbd", None):
        print(f"train_aug: {voc.augment_voc(options.input, options.sbd):,d} images")
    if options.check:
        checks = [check.check_split(data, split) for split in (data.split, data.eval_split)]
        print(check.report(checks, data.class_names, data.ignore_label))
        if bad := sum(len(one.problems) for one in checks):
            raise SourceError(f"{options.input}: {bad} problems, see above")
        found, expected = tuple(one.images for one in checks), EXPECTED.get(options.dataset)
        if expected and found != expected and not options.any_count:
            raise SourceError(f"{options.input}: {found} images, but {expected} are expected; --any-count takes them")
    if options.output:
        splits = {"train": data.split, "validation": data.eval_split}
        opened = {name: examples.open_examples(data, split) for name, split in splits.items()}
        print(writing.write_pairs(options.output, options.dataset, opened, data.class_names, data.class_colors))


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

    command = commands.add_parser("imagenet", help="images for pretraining, from a folder or ILSVRC's tar files")
    command.add_argument("--output", required=True, help="folder to write to; the value of data.path")
    command.add_argument("--train", required=True, help="folder, tar of images, tar of tars, or folder of tars")
    command.add_argument("--validation", help="likewise")
    command.add_argument("--shorter-side", type=int, default=0, help="make larger images smaller; 0: keep all bytes")
    command.add_argument("--quality", type=int, default=95, help="of re-encoded JPEGs (%(default)s)")
    command.set_defaults(run=prepare_images)

    for name in (*EXPECTED, "folder"):
        command = commands.add_parser(name, help=f"labelled images, see configs/finetune_{name}.py")
        command.add_argument("--input", required=True, help="the data set's folder")
        command.add_argument("--output", help="write array_record below this folder")
        command.add_argument("--check", action="store_true", help="read every pair, print a table, fail on problems")
        command.add_argument("--any-count", action="store_true", help="accept part of the data set")
        for key in LAYOUT:
            command.add_argument(f"--{key.replace('_', '-')}", help=f"instead of the config's data.{key}")
        command.set_defaults(run=prepare_labelled, dataset=name)
        if name == "voc":
            command.add_argument("--sbd", help="SBD's dataset folder: makes SegmentationClassAug and train_aug.txt first")
    return main


if __name__ == "__main__":
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"prepare_data.py: {error}")
