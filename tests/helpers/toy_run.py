"""Runs of the toy task with real checkpoints, and what they must give, for tests of the loop."""

import os
import signal

import jax.numpy as jnp
import numpy as np

from cp2_jax.runs import loop, writers
from cp2_jax.runs.checkpoints import Checkpoints
from cp2_jax.runs.writers import Writer
from helpers.toy import State, batches, step


def run(workdir, total=10, *, step=step, data=None, save_every=4, log_every=1, keep=20, **options):
    """Start, or resume what is there, as the entry points do."""
    saver = Checkpoints(workdir / "checkpoints", keep)
    state = State(step=jnp.int32(0), total=jnp.float32(0))
    if restored := saver.restore(state):
        state, meta = restored
        assert meta == {"kind": "toy", "iterator": {"next_batch": int(state.step)}}
    start = int(state.step)
    try:
        with Writer(workdir, total, start) as writer:
            return loop.fit(
                step,
                state,
                batches(start) if data is None else data,
                total_steps=total,
                writer=writer,
                checkpoints=saver,
                meta={"kind": "toy"},
                save_every=save_every,
                log_every=log_every,
                samples_per_step=8,
                **options,
            )
    finally:
        saver.close()


def computed(workdir):
    lines = writers.read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(writers.VARYING)} for line in lines]


def saved(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def interrupt_after(number, signum=signal.SIGTERM):
    return lambda done, _: os.kill(os.getpid(), signum) if done == number else None


def losses(count):
    total, expected = np.float32(0), []
    for number in range(count):
        total = total + np.float32(0.1 * number + 1)
        expected.append(float(total / np.float32(3)))
    return expected
