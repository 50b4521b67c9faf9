"""`cp2 probe`: what frozen features know about labelled images."""

from cp2_jax.cli import command

TEXT = """\
Score the features of a checkpoint on labelled images, without finetuning: by a
linear classifier, and by nearest neighbours (k-NN).

  cp2 probe runs/photos my_data
  cp2 probe runs/cp2 --config finetune_voc --config.data.path=VOCdevkit/VOC2012

All images are resized to SIZE x SIZE pixels; the scores are those of the
validation images at that size."""


def _options(made):
    command.place(made, "checkpoint", "a run, one step of it, or a converted checkpoint")
    command.place(made, "data", "folder of labelled images (data.path)", required=False)
    made.add_argument("--features", metavar="KIND", default="backbone", help="backbone (if not given) or head")
    made.add_argument("--size", metavar="N", type=command.whole(1), default=224, help="pixels of a side (%(default)s)")
    made.add_argument("--k", metavar="N", type=command.whole(1), default=20, help="number of neighbours (%(default)s)")


def _run(arguments):
    from cp2_jax.interface.probing import probe

    config = command.changed(arguments.config or "finetune_folder", arguments.changes)
    found = probe(
        arguments.checkpoint,
        arguments.data,
        config=config,
        features=arguments.features,
        size=arguments.size,
        k=arguments.k,
    )
    for name, scores in found.items():
        words = f"mIoU {scores.mean_iou:6.1%}  class accuracy {scores.mean_accuracy:6.1%}"
        print(f"{name:7} {words}  pixel accuracy {scores.pixel_accuracy:6.1%}")


COMMAND = command.Command(TEXT, _options, _run, config="finetune_folder")
