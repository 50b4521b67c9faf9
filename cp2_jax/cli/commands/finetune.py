"""`cp2 finetune`: train a model further on images with masks."""

from cp2_jax.cli import command, processes
from cp2_jax.cli.errors import UsageError

TEXT = """\
Finetune a model for semantic segmentation on images with masks.

  cp2 finetune my_data runs/mine --checkpoint runs/photos
  cp2 finetune --config finetune_voc --workdir runs/voc \\
      --config.data.path=/data/VOCdevkit/VOC2012 --checkpoint runs/photos

DATA has images/{train,val}, labels/{train,val} and classes.txt (docs/data.md).
Without --checkpoint the model starts from scratch. Run again with the same
WORKDIR, it resumes where it was. Last model: WORKDIR/checkpoints; best:
WORKDIR/best; scores: WORKDIR/scores.json."""


def _options(made):
    command.place(made, "data", "folder of labelled images (data.path)", required=False)
    processes.add_training_options(made)


def _run(arguments):
    from cp2_jax.interface import overrides, training

    if not arguments.data and not arguments.config:
        raise UsageError("say where the data is, `cp2 finetune DATA WORKDIR`, or give a --config")
    processes.join(arguments)
    config = training.finetuning_config(arguments.data, arguments.workdir, arguments.checkpoint, config=arguments.config)
    overrides.parse(config, arguments.changes)
    training.settle(config, arguments.workdir, {name for name, _ in arguments.changes})
    training.run_finetuning(config, arguments.workdir, profile=arguments.profile, stall_timeout=arguments.stall_timeout)


COMMAND = command.Command(TEXT, _options, _run, config="finetune_folder")
