"""`cp2 evaluate`: score a finetuned model."""

from cp2_jax.cli import command, processes

TEXT = """\
Score a finetuned model on its validation images, or on others.

  cp2 evaluate runs/voc
  cp2 evaluate runs/voc --config.data.eval_split=train
  cp2 evaluate runs/voc --checkpoint best --config.evaluation.flip=True \\
      --config.evaluation.ratios="(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)"

The run's own config says what the network is, what is tested and how;
--config.data.… and --config.evaluation.… change the last two. Writes
WORKDIR/scores.json and pictures; of another split, WORKDIR/scores_SPLIT.json."""


def _options(made):
    command.place(made, "workdir", "work directory of the finetuning; gets scores and pictures")
    made.add_argument(
        "--checkpoint", metavar="WHICH", type=command.path, help="newest (if not given), best, a step's number, or a path"
    )
    made.add_argument(
        "--predictions", metavar="DIR", type=command.path, help="also write the predicted class maps (palette PNGs) here"
    )
    processes.add_options(made)


def _run(arguments):
    from cp2_jax.interface import testing

    processes.join(arguments)
    testing.run_evaluation(
        arguments.workdir,
        arguments.checkpoint,
        config=command.typed_config(arguments) if arguments.config else None,
        adapt=None if arguments.config else testing.typed(arguments.changes),
        predictions=arguments.predictions,
    )


COMMAND = command.Command(TEXT, _options, _run, config="finetune_folder", sections=("data", "evaluation"))
