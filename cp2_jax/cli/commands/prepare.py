"""`cp2 prepare`: make, check and pack data sets."""

from cp2_jax.cli import command

TEXT = """\
Make, check and pack data sets (docs/data.md).

  cp2 prepare demo --output data/demo
  cp2 prepare folder --input my_data --check
  cp2 prepare voc --input VOCdevkit/VOC2012 \\
      --sbd benchmark_RELEASE/dataset --check
  cp2 prepare imagenet --train ILSVRC2012_img_train.tar \\
      --output data/imagenet --shorter-side 256

voc, cityscapes, ade20k, camvid and folder are used from the layout that they
are downloaded in: --check reads every pair, prints a table and fails if
anything is wrong; --output writes them as one TFDS array_record data set. Run
again, what is complete is left alone and what is half-written is replaced."""

# Images of the training and validation splits of the whole data sets.
EXPECTED = {"voc": (10_582, 1_449), "cityscapes": (2_975, 500), "ade20k": (20_210, 2_000), "camvid": (367, 101)}
LAYOUT = ("images", "labels", "image_suffix", "label_suffix", "split", "eval_split", "classes")


def _options(made):
    sets = made.add_subparsers(required=True, metavar="DATASET", dest="dataset", parser_class=command.parser)
    _demo_options(sets.add_parser("demo", help="textured objects on textured backgrounds, five classes, exact masks"))
    _study_options(sets.add_parser("study", help="what `cp2 study --config study_cpu` needs, in less than 50 MB"))
    _images_options(sets.add_parser("imagenet", help="images for pretraining, from a folder or ILSVRC's tar files"))
    for name in (*EXPECTED, "folder"):
        _labelled_options(sets.add_parser(name, help=f"labelled images, see configs/finetune_{name}.py"), name)


def _demo_options(made):
    made.add_argument("--output", type=command.local, required=True, help="folder to write to; the value of data.path")
    made.add_argument("--size", type=int, default=64, help="side of the scenes in pixels (%(default)s)")
    made.add_argument("--train", type=int, default=4000, help="scenes for pretraining (%(default)s)")
    made.add_argument("--labelled", type=int, default=40, help="scenes for finetuning (%(default)s)")
    made.add_argument("--validation", type=int, default=200, help="scenes for evaluation (%(default)s)")
    made.add_argument("--seed", type=int, default=0, help="another seed, other scenes (%(default)s)")
    made.add_argument("--sheet", metavar="PNG", type=command.local, help="also show validation scenes above their masks")
    made.set_defaults(prepare=_demo)


def _study_options(made):
    made.add_argument("--output", type=command.local, required=True, help="folder to write to; the value of config.data")
    made.add_argument("--photographs", type=command.local, default="", help=".npz file with the arrays jpeg and offset")
    made.add_argument("--camvid", type=command.local, default="", help="CamVid's folder")
    made.set_defaults(prepare=_study)


def _images_options(made):
    made.add_argument("--output", type=command.local, required=True, help="folder to write to; the value of data.path")
    made.add_argument(
        "--train", type=command.local, required=True, help="folder, tar of images, tar of tars, or folder of tars"
    )
    made.add_argument("--validation", type=command.local, help="likewise")
    made.add_argument("--shorter-side", type=int, default=0, help="make larger images smaller; 0: keep all bytes")
    made.add_argument("--quality", type=int, default=95, help="of re-encoded JPEGs (%(default)s)")
    made.set_defaults(prepare=_images)


def _labelled_options(made, name):
    made.add_argument("--input", type=command.local, required=True, help="the data set's folder")
    made.add_argument("--output", type=command.local, help="write array_record below this folder")
    made.add_argument("--check", action="store_true", help="read every pair, print a table, fail on problems")
    made.add_argument("--any-count", action="store_true", help="accept part of the data set")
    for key in LAYOUT:
        made.add_argument(f"--{key.replace('_', '-')}", help=f"instead of the config's data.{key}")
    made.set_defaults(prepare=_labelled)
    if name == "voc":
        made.add_argument(
            "--sbd", type=command.local, help="SBD's dataset folder: makes SegmentationClassAug and train_aug.txt first"
        )


def _demo(options):
    from cp2_jax.data import demo
    from cp2_jax.data.images.sources import TfdsSource

    sizes = {key: getattr(options, key) for key in ("size", "train", "labelled", "validation", "seed")}
    path = demo.prepare(options.output, **sizes)
    print(path)
    for split in ("train", "train_labelled", "validation"):
        print(f"{split}: {len(TfdsSource(path, split, ('image', 'segmentation_mask')))} scenes")
    if options.sheet:
        demo.contact_sheet(options.sheet, size=options.size, seed=options.seed)
        print(f"some validation scenes above their masks: {options.sheet}")


def _study(options):
    from cp2_jax.data.prepare import studies

    for name, path in studies.prepare(options.output, options.photographs, options.camvid).items():
        print(f"{name}: {path}")


def _images(options):
    from cp2_jax.data.images.sources import TfdsSource
    from cp2_jax.data.prepare import imagenet

    inputs = {split: getattr(options, split) for split in ("train", "validation") if getattr(options, split)}
    path, unreadable = imagenet.prepare_images(options.output, inputs, options.shorter_side, options.quality)
    for split in inputs:
        print(f"{split}: {len(TfdsSource(path, split)):,d} images in {path}")
        for problem in unreadable[split]:
            print(f"  not readable, kept as it is: {problem}")
    if "train" in inputs:
        print(f"next: cp2 pretrain {options.output} WORKDIR")


def _labelled(options):
    from cp2_jax import config_files
    from cp2_jax.data.images.sources import SourceError
    from cp2_jax.data.labelled import check, classes, examples
    from cp2_jax.data.prepare import voc, writing

    config = config_files.load(f"finetune_{options.dataset}")
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
        print(f"\nno problems\nnext: {_next(options)}")
    if options.output:
        splits = {"train": data.split, "validation": data.eval_split}
        opened = {name: examples.open_examples(data, split) for name, split in splits.items()}
        path = writing.write_pairs(options.output, options.dataset, opened, data.class_names, data.class_colors)
        keys = {"source": "tfds", "path": options.output, "split": "train", "eval_split": "validation"}
        keys |= {"classes": path / "classes.txt"} if options.dataset == "folder" else {}
        typed = " ".join(f"--config.data.{key}={value}" for key, value in keys.items())
        print(f"{path}\nnext: cp2 finetune --config finetune_{options.dataset} --workdir WORKDIR {typed}")


def _next(options) -> str:
    """Return the command that trains on what was checked."""
    layout = "".join(f" --config.data.{key}={getattr(options, key)}" for key in LAYOUT if getattr(options, key) is not None)
    if options.dataset == "folder" and not layout:
        return f"cp2 finetune {options.input} WORKDIR"
    return f"cp2 finetune --config finetune_{options.dataset} --workdir WORKDIR --config.data.path={options.input}{layout}"


def _run(options):
    options.prepare(options)


COMMAND = command.Command(TEXT, _options, _run)
