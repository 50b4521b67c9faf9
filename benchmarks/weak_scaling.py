"""Host overhead of a step on several processes against one: what the host does for each step besides decoding.

    python benchmarks/weak_scaling.py [--processes 2] [--steps 200] [--batch 32] [--json FILE]

Each process has one CPU device and the same share of a batch (weak scaling: the batch grows with the processes). Timed are
assembly (`mesh.place_batch` of crops at full size) and dispatch (the call of a jitted, donating step until it returns; the
step itself does next to nothing, a sum over all devices included), then the wait for that sum, which is communication.
Runs of one and of several processes alternate; medians over steps, the least of the rounds.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARTS = ("assembly", "dispatch", "wait")


def worker(task):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cp2_jax.runs import distributed, mesh

    if task["processes"] > 1:
        distributed.initialize(task["coordinator"], task["processes"], task["process"])
    device_mesh = mesh.make_mesh()
    crops = np.zeros((task["batch"], 2, 224, 224, 3), np.uint8)
    host = {"foreground": crops, "background": crops}
    data, everywhere = mesh.batch_sharding(device_mesh), mesh.replicated(device_mesh)
    # As many arrays as a training state has.
    state = jax.jit(lambda: [jnp.zeros(8) for _ in range(600)], out_shardings=everywhere)()

    def touch(state, batch):
        total = sum(jnp.sum(x[:, :, 0, 0, 0].astype(jnp.int32)) for x in batch.values())
        return [x + 1 for x in state], total

    step = jax.jit(
        touch,
        in_shardings=(everywhere, {name: data for name in host}),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
    times = []
    for _ in range(task["steps"]):
        marks = [time.perf_counter()]
        batch = mesh.place_batch(device_mesh, host)
        marks.append(time.perf_counter())
        state, total = step(state, batch)
        marks.append(time.perf_counter())
        total.block_until_ready()
        marks.append(time.perf_counter())
        times.append([b - a for a, b in zip(marks, marks[1:], strict=False)])
    if task["process"] == 0:
        columns = zip(*times[task["steps"] // 4 :], strict=True)
        medians = dict(zip(PARTS, map(statistics.median, columns), strict=True))
        pathlib.Path(task["output"]).write_text(json.dumps(medians))


def run(processes, arguments):
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("localhost", 0))
        task = dict(
            processes=processes,
            coordinator=f"localhost:{free.getsockname()[1]}",
            steps=arguments.steps,
            batch=arguments.batch,
            output=f"{folder}/times.json",
        )
        free.close()
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        started = [
            subprocess.Popen([sys.executable, __file__, "--worker", json.dumps(task | {"process": p})], env=environment)
            for p in range(processes)
        ]
        if any([process.wait() for process in started]):
            raise SystemExit("a process failed")
        return json.loads(pathlib.Path(task["output"]).read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="of each process")
    parser.add_argument("--json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(json.loads(arguments.worker))
    found = {1: [], arguments.processes: []}
    for _ in range(arguments.rounds):
        for processes, runs in found.items():
            runs.append(run(processes, arguments))
    best = {n: {part: min(r[part] for r in runs) for part in PARTS} for n, runs in found.items()}
    for times in best.values():
        times["overhead"] = times["assembly"] + times["dispatch"]
    one, several = best.values()
    ratios = {part: several[part] / one[part] for part in (*PARTS, "overhead")}
    print(f"| per step, {arguments.batch} samples a process | 1 process | {arguments.processes} processes | ratio |")
    print("|---|---|---|---|")
    for part, ratio in ratios.items():
        print(f"| {part} | {1e3 * one[part]:.2f} ms | {1e3 * several[part]:.2f} ms | {ratio:.2f} |")
    if arguments.json:
        result = {"batch": arguments.batch, "seconds": {str(n): times for n, times in best.items()}, "ratios": ratios}
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
