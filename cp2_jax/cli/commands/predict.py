"""`cp2 predict`: class maps of a folder of images."""

from cp2_jax.cli import command

TEXT = """\
Predict the class maps of a folder of images.

  cp2 predict runs/mine photos predicted
  cp2 predict runs/mine maps predicted --config.evaluation.window="(512, 512)" \\
      --config.evaluation.stride="(341, 341)"

Writes OUTPUT/masks (palette PNGs of class indices, at the images' own sizes)
and OUTPUT/overlays. The run's own config says what the network is. A model
without a config in its checkpoint, such as a converted one, takes --config."""


def _options(made):
    command.place(made, "checkpoint", "finetuned model: a finetuning's work directory, or its `best`")
    command.place(made, "images", "folder of images, nested or flat")
    command.place(made, "output", "where masks and overlays go")
    command.switch(made, "--mask-values", False, "write the values of the data set's own masks (for a server), not indices")


def _run(arguments):
    from cp2_jax.data.errors import UnreadableImage
    from cp2_jax.interface import testing

    done = testing.run_prediction(
        arguments.checkpoint,
        arguments.images,
        arguments.output,
        config=command.typed_config(arguments) if arguments.config else None,
        adapt=None if arguments.config else testing.typed(arguments.changes),
        own_values=arguments.mask_values,
    )
    if done.problems:
        raise UnreadableImage("not predicted", "\n  ".join(["", *done.problems]))


COMMAND = command.Command(TEXT, _options, _run, config="finetune_folder", sections=("data", "evaluation"))
