"""Finetune for semantic segmentation: python scripts/finetune.py --config configs/finetune_… --workdir DIR

Run again with the same work directory, it resumes. Last model: DIR/checkpoints; best: DIR/best; scores: DIR/scores.json.
"""

import _cli

CONFIG = _cli.define_config_flags()
PROFILE = _cli.flags.DEFINE_bool("profile", False, "Trace a few steps, print where their time goes, end.")

from cp2_jax.segmentation import run  # noqa: E402


def main(_):
    flags = _cli.flags.FLAGS
    result = run.train(CONFIG.value, flags.workdir, profile=PROFILE.value, stall_timeout=flags.stall_timeout)
    print(f"finished {result.steps} steps; model and scores in {result.workdir}")


if __name__ == "__main__":
    _cli.run(main)
