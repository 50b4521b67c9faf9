"""What a run needs before it is started: python scripts/plan.py --config configs/… --topology v4-32

Compiles the config's real step for the topology, without having it (TPU: pip install 'cp2_jax[tpu]'), and prints memory,
work, communication and bounds on time. Topologies: slices (v3-8, v4-32, v5e-16, …), shapes (v4:2x2x4), or "local".
"""

import json
import pathlib

import _cli

CONFIG = _cli.define_config("Pretraining or finetuning config.", required=True)
_cli.flags.DEFINE_string("topology", "local", "Slice, shape of a slice, or local: the devices of this machine.")
_cli.flags.DEFINE_integer("images", 1_281_167, "Images of an epoch (ImageNet's training set).", lower_bound=1)
_cli.flags.DEFINE_list("efficiencies", ["1", "0.5", "0.25"], "Shares of the bound's speed to give hours for.")
_cli.flags.DEFINE_string("json", None, "File to write the plan to as well.")

from cp2_jax import validation  # noqa: E402
from cp2_jax.planning import chips, program, report  # noqa: E402


def main(_):
    config, flags = CONFIG.value, _cli.flags.FLAGS
    topology = chips.get(flags.topology)
    config.data.path = config.data.path or "unread"
    check = {"pretrain": validation.validate_pretrain, "finetune": validation.validate_finetune}
    check[config.kind](config, len(topology.devices))
    compiled = program.compile_step(config, topology, flags.images)
    plan = report.plan(config, topology, compiled, flags.images, [float(e) for e in flags.efficiencies])
    print(report.table(compiled, plan))
    if flags.json:
        text = json.dumps({"config": config.to_dict()} | report.as_dict(compiled, plan), indent=1, default=str)
        pathlib.Path(flags.json).write_text(text + "\n")
    if compiled.fits is False:
        _cli.fail(f"{config.batch_size} images do not fit {flags.topology}; {_cli.memory.REMEDIES}", 1)


if __name__ == "__main__":
    _cli.run(main)
