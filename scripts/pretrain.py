"""Pretrain a segmentation model with CP2: python scripts/pretrain.py --config configs/… --workdir DIR

The configs say the whole command of each experiment. Run again with the same work directory, it resumes.
"""

import _cli

CONFIG = _cli.define_config_flags()
PROFILE = _cli.flags.DEFINE_bool("profile", False, "Trace a few steps, print where their time goes, end.")

from cp2_jax.pretraining import run  # noqa: E402


def main(_):
    flags = _cli.flags.FLAGS
    result = run.train(CONFIG.value, flags.workdir, profile=PROFILE.value, stall_timeout=flags.stall_timeout)
    print(f"finished {result.steps} steps; model and pictures in {result.workdir}")


if __name__ == "__main__":
    _cli.run(main)
