"""Score a finetuned model: python scripts/evaluate.py --config configs/finetune_… --workdir DIR [--checkpoint DIR/best]

Takes the newest checkpoint of the work directory unless told otherwise; writes DIR/scores.json and overlays.
Protocols by config, e.g. --config.evaluation.flip=True --config.evaluation.ratios='(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)'.
"""

import pathlib

import _cli

FLAGS = _cli.define_config_flags()
_cli.flags.DEFINE_string("checkpoint", None, "Checkpoint to score, instead of the work directory's newest.")
_cli.flags.DEFINE_string("predictions", None, "Folder for the predicted class maps (palette PNGs), e.g. for a server.")

import jax  # noqa: E402

from cp2_jax.data.labelled import classes  # noqa: E402
from cp2_jax.runs import distributed, mesh  # noqa: E402
from cp2_jax.runs.checkpoints import read_variables  # noqa: E402
from cp2_jax.segmentation import evaluation  # noqa: E402


def main(_):
    config, flags = FLAGS.value, _cli.flags.FLAGS
    workdir = pathlib.Path(flags.workdir).absolute()
    source = flags.checkpoint or workdir
    distributed.agree(distributed.facts(config, {"--workdir": workdir}))
    classes.resolve(config)
    evaluator = evaluation.Evaluator(config, mesh.make_mesh())
    variables, meta = read_variables(source)
    evaluator.check(variables)
    variables = jax.device_put(variables, mesh.replicated(evaluator.device_mesh))
    print(f"{len(evaluator.examples)} images, checkpoint {source}", flush=True)
    result = evaluator(variables, flags.predictions)
    print(evaluation.report(result, evaluator.names))
    extra = {"checkpoint": str(source), "step": meta.get("iterator", meta).get("next_batch", meta.get("step"))}
    evaluator.save(workdir, result, variables, extra | {"protocol": config.evaluation.to_dict()})


if __name__ == "__main__":
    _cli.run(main)
