"""`cp2 evaluate`: score a finetuned model."""

import pathlib

from cp2_jax.cli import command, processes

TEXT = """\
Score a finetuned model on the validation images.

  cp2 evaluate --config finetune_voc --workdir runs/voc

Takes the newest checkpoint of the work directory unless told otherwise; writes
WORKDIR/scores.json and overlays. Protocols by config, e.g.
--config.evaluation.flip=True
--config.evaluation.ratios="(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)"."""


def _options(made):
    command.place(made, "workdir", "work directory of the finetuning; gets scores and pictures")
    made.add_argument(
        "--checkpoint", metavar="PATH", type=command.path, help="model to score, instead of the work directory's newest"
    )
    made.add_argument(
        "--predictions", metavar="DIR", type=command.path, help="also write the predicted class maps (palette PNGs) here"
    )
    processes.add_options(made)


def _run(arguments):
    import jax

    from cp2_jax.data.labelled import classes
    from cp2_jax.runs import distributed, mesh
    from cp2_jax.runs.checkpoints import read_variables
    from cp2_jax.segmentation import evaluation, reports

    processes.join(arguments)
    config = command.typed_config(arguments)
    workdir = pathlib.Path(arguments.workdir).absolute()
    source = arguments.checkpoint or workdir
    distributed.agree(distributed.facts(config, {"--workdir": workdir}))
    classes.resolve(config)
    evaluator = evaluation.Evaluator(config, mesh.make_mesh())
    variables, meta = read_variables(source)
    evaluator.check(variables)
    variables = jax.device_put(variables, mesh.replicated(evaluator.device_mesh))
    print(f"{len(evaluator.examples)} images, checkpoint {source}", flush=True)
    result = evaluator(variables, arguments.predictions)
    print(reports.report(result, evaluator.names))
    extra = {"checkpoint": str(source), "step": meta.get("iterator", meta).get("next_batch", meta.get("step"))}
    evaluator.save(workdir, result, variables, extra | {"protocol": config.evaluation.to_dict()})


COMMAND = command.Command(TEXT, _options, _run, config="finetune_voc")
