"""Is a run that is killed the same run? Kills a pretraining with SIGKILL at random moments and resumes it each time.

    python benchmarks/resume.py --kills 10 --steps 60 -- --config=configs/pretrain_demo.py --config.data.path=data/demo

What follows -- goes to scripts/pretrain.py. Compares with an unbroken run, bit for bit: every metric of every logged step
and every array of the last checkpoint. After each kill every checkpoint that was complete must still be whole.
Status 1 if anything differs or was lost.
"""

import argparse
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from cp2_jax.runs.checkpoints import CheckpointError, read
from cp2_jax.runs.writers import VARYING, read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]


def start(workdir: pathlib.Path, arguments: argparse.Namespace) -> subprocess.Popen:
    settings = {"steps": arguments.steps, "save_every": arguments.save_every, "log_every": 1, "picture_every": 0}
    command = [sys.executable, "scripts/pretrain.py", *arguments.command, f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)


def last_step(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return lines[-1]["step"] if lines else 0


def kill_once(workdir: pathlib.Path, arguments: argparse.Namespace, longest: float) -> str | None:
    """Let the run get a step further and have a checkpoint, wait a random moment, kill; None if it finished before."""
    process, before = start(workdir, arguments), last_step(workdir)
    while process.poll() is None and not (before < last_step(workdir) and complete(workdir)):
        time.sleep(0.02)
    time.sleep(random.uniform(0, longest))
    whole = complete(workdir)
    if process.poll() is not None:
        if process.returncode:
            raise SystemExit(f"the run failed by itself, status {process.returncode}")
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    half = len(list((workdir / "checkpoints").glob("*tmp*")))
    for step in whole & complete(workdir):  # older ones may have made room for newer
        read(workdir / "checkpoints" / step)
    if whole and not complete(workdir):
        raise CheckpointError(f"every checkpoint of {sorted(whole)} was lost")
    return f"killed after step {last_step(workdir)}, checkpoints {sorted(map(int, complete(workdir)))}, {half} half-written"


def complete(workdir: pathlib.Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()}


def differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
    """Name the metrics and arrays that are not the same to the last bit."""
    found = []
    lines = [read_metrics(run / "metrics.jsonl") for run in (first, second)]
    if len(lines[0]) != len(lines[1]):
        found.append(f"{len(lines[0])} and {len(lines[1])} lines of metrics")
    for one, other in zip(*lines, strict=False):
        names = [name for name in one | other if not name.startswith(VARYING) and one.get(name) != other.get(name)]
        found += [f"step {one['step']}: {name}" for name in names]
    trees = [jax.tree_util.tree_leaves_with_path(read(run)[0]) for run in (first, second)]
    for (path, one), (_, other) in zip(*trees, strict=True):
        if np.asarray(one).tobytes() != np.asarray(other).tobytes():
            found.append(f"last checkpoint: {jax.tree_util.keystr(path)}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save_every", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a new folder for both runs")
    parser.add_argument("command", nargs="*", help="arguments of scripts/pretrain.py, after --")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    unbroken, killed = arguments.workdir / "unbroken", arguments.workdir / "killed"
    begin = time.monotonic()
    if start(unbroken, arguments).wait():
        raise SystemExit("the unbroken run failed")
    print(f"unbroken: {last_step(unbroken)} steps in {time.monotonic() - begin:.0f} s", flush=True)
    seconds = np.mean([line["time/seconds_per_step"] for line in read_metrics(unbroken / "metrics.jsonl")[2:]])
    longest = arguments.steps * seconds / (arguments.kills + 1)
    for number in range(arguments.kills):
        outcome = kill_once(killed, arguments, longest)
        if outcome is None:
            print(f"finished before kill {number + 1}: ask for more steps or fewer kills")
            break
        print(f"{number + 1:3d} {outcome}", flush=True)
    if start(killed, arguments).wait():
        raise SystemExit("the killed run could not be resumed")
    found = differences(unbroken, killed)
    print("\n".join(found[:20]) or f"the same {last_step(killed)} steps and the same last checkpoint, bit for bit")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
