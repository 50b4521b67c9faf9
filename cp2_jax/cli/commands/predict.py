"""`cp2 predict`: class maps of a folder of images."""

from cp2_jax.cli import command

TEXT = """\
Predict the class maps of a folder of images.

  cp2 predict runs/mine photos predicted

Writes OUTPUT/masks (palette PNGs of class indices, at the images' own sizes)
and OUTPUT/overlays. A model without a config in its checkpoint, such as a
converted one, takes --config."""


def _options(made):
    command.place(made, "checkpoint", "finetuned model: a finetuning's work directory, or its `best`")
    command.place(made, "images", "folder of images, nested or flat")
    command.place(made, "output", "where masks and overlays go")
    command.switch(made, "--mask-values", False, "write the values of the data set's own masks (for a server), not indices")


def _run(arguments):
    from ml_collections import ConfigDict

    from cp2_jax.data.images.decoding import UnreadableImage
    from cp2_jax.data.images.sources import ImageFolder
    from cp2_jax.data.labelled import classes
    from cp2_jax.options import ConfigError
    from cp2_jax.runs import progress
    from cp2_jax.runs.checkpoints import read_variables
    from cp2_jax.segmentation import class_maps, predictor

    variables, meta = read_variables(arguments.checkpoint)
    if not arguments.config and "config" not in meta:
        raise ConfigError(f"{arguments.checkpoint} has no config in it; give one with --config finetune_…")
    config = command.typed_config(arguments) if arguments.config else ConfigDict(meta["config"])
    classes.resolve(config)
    predictor.check_variables(config, variables)
    images = ImageFolder(arguments.images)
    done = class_maps.predict_folder(config, variables, images, arguments.output, arguments.mask_values)
    unreadable = [problem for problem in progress.track(done, "predicting", len(images)) if problem]
    print(f"{len(images) - len(unreadable)} images; masks and overlays in {arguments.output}")
    if unreadable:
        raise UnreadableImage("not predicted", "\n  ".join(["", *unreadable]))


COMMAND = command.Command(TEXT, _options, _run, config="finetune_voc")
