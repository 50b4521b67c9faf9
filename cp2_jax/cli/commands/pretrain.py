"""`cp2 pretrain`: train a segmentation model on images without labels."""

from cp2_jax.cli import command, processes
from cp2_jax.cli.errors import UsageError

TEXT = """\
Pretrain a segmentation model, backbone and head, on images without labels.

  cp2 pretrain photos runs/photos
  cp2 pretrain photos runs/photos --checkpoint moco_v2_800ep_pretrain.pth.tar
  cp2 pretrain --config pretrain:vit,fcn --workdir runs/vit \\
      --config.data.path=/data/imagenet/train

The second starts from somebody's checkpoint (Quick Tuning). Run again with the
same WORKDIR, it resumes where it was."""


def _options(made):
    command.place(made, "images", "folder of images, nested or flat (data.path)", required=False)
    processes.add_training_options(made)


def _run(arguments):
    from cp2_jax.interface import overrides, training

    if not arguments.images and not arguments.config:
        raise UsageError("say where the images are, `cp2 pretrain IMAGES WORKDIR`, or give a --config")
    processes.join(arguments)
    config = training.pretraining_config(arguments.images, arguments.workdir, arguments.checkpoint, config=arguments.config)
    overrides.parse(config, arguments.changes)
    training.settle(config, arguments.workdir, {name for name, _ in arguments.changes})
    training.run_pretraining(config, arguments.workdir, profile=arguments.profile, stall_timeout=arguments.stall_timeout)


COMMAND = command.Command(TEXT, _options, _run, config="pretrain")
