"""One process of a run, for test_distributed: the command line around a toy task, which is told how to misbehave.

python tests/helpers/processes.py --workdir DIR --config FILE --coordinator … --num_processes N --process_id I --act WHAT
"""

import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import toy

from cp2_jax.cli import command, errors, main, processes
from cp2_jax.data.errors import UnreadableImage
from cp2_jax.runs import distributed, leaving, loop, mesh, session
from cp2_jax.runs.bucket_checkpoints import open_checkpoints
from cp2_jax.runs.writers import Writer


def options(made):
    command.place(made, "workdir", "of the run")
    made.add_argument("--act", default="", help="kill, freeze, sleep, raise, unreadable: what one process does in step 5")
    made.add_argument("--who", type=int, default=1, help="index of that process")
    made.add_argument("--late", type=int, default=-1, help="index of the process that is slow to leave after an error")
    made.add_argument("--steps", type=int, default=200, help="length of the run")
    processes.add_options(made)


def run(flags):
    try:
        train(flags)
    except Exception:
        if flags.late == flags.process_id:
            time.sleep(5)
        raise


def train(flags):
    processes.join(flags)
    distributed.agree(distributed.facts(command.typed_config(flags), {"--workdir": flags.workdir}))
    device_mesh = mesh.make_mesh()

    @jax.jit
    def step(state, batch):
        state = toy.State(step=state.step + 1, total=state.total + jnp.sum(batch))
        return state, toy.Metrics.single_from_model_output(loss=state.total, last=jnp.max(batch))

    state = toy.State(step=jnp.int32(0), total=jnp.float32(0))
    state = jax.device_put(state, mesh.replicated(device_mesh))
    saver = open_checkpoints(f"{flags.workdir}/checkpoints", 3)
    if restored := saver.restore(state):
        state, _ = restored
    start = int(state.step)
    print(f"starting at {start} with {jax.process_count()} processes, {jax.device_count()} devices", flush=True)
    rows = np.array(mesh.local_rows(device_mesh, 8), np.float32)

    def read():
        for number in range(start, 10**6):
            if (number, flags.act, jax.process_index()) == (5, "unreadable", flags.who):
                raise UnreadableImage("photos/5.png", "it is empty")
            yield mesh.place_batch(device_mesh, rows + number)

    def misbehave(number, state):
        time.sleep(0.02)
        if number == 5 and jax.process_index() == flags.who and start == 0:
            acts = {
                "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
                "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
                "sleep": lambda: time.sleep(300),
            }
            if flags.act == "raise":
                raise FileNotFoundError(f"the disk of process {flags.who} is gone")
            acts.get(flags.act, lambda: None)()

    with leaving.resumable(saver.latest_step), Writer(flags.workdir, flags.steps, start) as writer:
        state = loop.fit(
            step,
            state,
            read(),
            total_steps=flags.steps,
            writer=writer,
            checkpoints=saver,
            meta={},
            save_every=2,
            log_every=1,
            samples_per_step=8,
            on_step=[session.watchdog(flags.stall_timeout), misbehave],
        )
    saver.close()
    print(f"ended at {int(state.step)} with {float(state.total)}", flush=True)


if __name__ == "__main__":
    main.set_up()
    COMMAND = command.Command("A toy run.", options, run, config="pretrain")
    sys.exit(errors.guarded(lambda: main.start(COMMAND, "processes.py", sys.argv[1:])))
