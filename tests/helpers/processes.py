"""One process of a run, for test_distributed: scripts/_cli.py around a toy task, which is told how to misbehave.

python tests/helpers/processes.py --workdir DIR --config FILE --coordinator … --num_processes N --process_id I --act WHAT
"""

import os
import pathlib
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

import _cli  # noqa: E402

FLAGS = _cli.define_config_flags()
_cli.flags.DEFINE_string("act", "", "kill, freeze, sleep, raise: what process 1 does in step 5.")
_cli.flags.DEFINE_integer("steps", 200, "Length of the run.")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from cp2_jax.runs import distributed, loop, mesh  # noqa: E402
from cp2_jax.runs.checkpoints import Checkpoints  # noqa: E402
from cp2_jax.runs.writers import Writer  # noqa: E402
from helpers import toy  # noqa: E402


def main(_):
    flags = _cli.flags.FLAGS
    distributed.agree(distributed.facts(FLAGS.value, {"--workdir": flags.workdir}))
    device_mesh = mesh.make_mesh()

    @jax.jit
    def step(state, batch):
        state = toy.State(step=state.step + 1, total=state.total + jnp.sum(batch))
        return state, toy.Metrics.single_from_model_output(loss=state.total, last=jnp.max(batch))

    state = toy.State(step=jnp.int32(0), total=jnp.float32(0))
    state = jax.device_put(state, mesh.replicated(device_mesh))
    saver = Checkpoints(pathlib.Path(flags.workdir) / "checkpoints", 3)
    if restored := saver.restore(state):
        state, _ = restored
    start = int(state.step)
    print(f"starting at {start} with {jax.process_count()} processes, {jax.device_count()} devices", flush=True)
    rows = np.array(mesh.local_rows(device_mesh, 8), np.float32)
    batches = (mesh.place_batch(device_mesh, rows + n) for n in range(start, 10**6))

    def misbehave(number, state):
        time.sleep(0.02)
        if number == 5 and jax.process_index() == 1 and start == 0:
            acts = {
                "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
                "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
                "sleep": lambda: time.sleep(300),
            }
            if flags.act == "raise":
                raise FileNotFoundError("the disk of process 1 is gone")
            acts.get(flags.act, lambda: None)()

    with Writer(flags.workdir, flags.steps, start) as writer:
        state = loop.fit(
            step, state, batches, total_steps=flags.steps, writer=writer, checkpoints=saver, meta={}, save_every=2,
            log_every=1, samples_per_step=8, on_step=[_cli.watchdog(), misbehave],
        )  # fmt: skip
    saver.close()
    print(f"ended at {int(state.step)} with {float(state.total)}", flush=True)


if __name__ == "__main__":
    _cli.run(main)
