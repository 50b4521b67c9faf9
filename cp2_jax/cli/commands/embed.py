"""`cp2 embed`: features of a folder of images as one table."""

from cp2_jax.cli import command

TEXT = """\
Write the features of a folder of images, with the files' names.

  cp2 embed runs/photos photos features.npz
  cp2 embed runs/photos photos maps.parquet --dense --features backbone

An .npz holds the arrays `names` and `features`; a .parquet the columns `name`
and `features`. Without --dense each image has one vector: the mean over its
map."""


def _options(made):
    command.place(made, "checkpoint", "a run, one step of it, or a converted checkpoint")
    command.place(made, "images", "folder of images, nested or flat")
    command.place(made, "output", "file to write: OUTPUT.npz or OUTPUT.parquet")
    made.add_argument(
        "--features",
        choices=["backbone", "head", "projection", "logits"],
        help="which part of the network gives them (the head if there is one)",
    )
    command.switch(made, "--dense", False, "the whole map of each image")
    made.add_argument(
        "--size", metavar="N", type=command.whole(1), default=224, help="images are resized to N x N pixels (%(default)s)"
    )
    made.add_argument("--batch", metavar="N", type=command.whole(1), default=32, help="images at once (%(default)s)")
    made.add_argument(
        "--dtype", choices=["float32", "float16"], default="float32", help="of the numbers in the file (%(default)s)"
    )


def _run(arguments):
    from cp2_jax.interface import embedding

    names = ("features", "dense", "size", "batch", "dtype")
    options = {name: getattr(arguments, name) for name in names}
    embedding.embed(arguments.checkpoint, arguments.images, arguments.output, **options)


COMMAND = command.Command(TEXT, _options, _run)
