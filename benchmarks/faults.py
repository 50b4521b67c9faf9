"""Is a run to which something happens the same run? Injects faults at random moments of small pretraining runs.

    python benchmarks/faults.py --faults 200 --workdir /tmp/faults [--json FILE]

Each story is one run in one work directory. Again and again a fault happens to it (see `FAULTS`), what was broken is put
right, and the same command is run again, until the run is finished. Then every metric of every step and every array of the
last checkpoint must equal those of an unbroken run, bit for bit. After every fault: whatever checkpoint was complete
before is still whole (or a newer one is), and a process that was not killed has said in one line why it stopped. Status 1
if anything was lost, differs, hung, or ended in a traceback.

The moments follow from --seed. Full and read-only disks need root, for they mount a small file system; without it they
are left out, and the table says so.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from fault_kinds import FAULTS, Fault, Story, killed
from PIL import Image

STEPS, SAVE_EVERY, LIMIT = 120, 2, 180  # seconds after which a run counts as hung
SMALL_DISK = 10_000_000  # bytes of the small file systems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a new folder")
    parser.add_argument("--only", help="faults whose names contain this")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--run", help=argparse.SUPPRESS)  # what the runs themselves are started with
    arguments = parser.parse_args()
    if arguments.run:
        return work(json.loads(arguments.run))
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    chosen = {name: fault for name, fault in FAULTS.items() if (arguments.only or "") in name}
    left_out = [name for name, fault in chosen.items() if fault.mount and not root]
    chosen = {name: fault for name, fault in chosen.items() if name not in left_out}
    shares = sum(fault.share for fault in chosen.values())
    references: dict[tuple[int, int], pathlib.Path] = {}
    rows = {}
    for number, (name, fault) in enumerate(chosen.items()):
        count = -(-arguments.faults * fault.share // shares)
        kind = fault.processes, fault.workers
        if kind not in references:
            references[kind] = unbroken(arguments.workdir / f"unbroken_{kind[0]}_{kind[1]}", *kind)
        rows[name] = tell(arguments.workdir / f"story_{number}", name, fault, count, arguments.seed, references[kind])
        print(line(name, rows[name]), flush=True)
    total = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values())) if key != "problems"}
    problems = [problem for row in rows.values() for problem in row["problems"]]
    print(line("all", total | {"problems": problems}))
    print("\n".join([*(f"left out, for want of root: {name}" for name in left_out), *problems]))
    if arguments.json:
        text = json.dumps({"seed": arguments.seed, "rows": rows, "all": total, "left_out": left_out}, indent=1)
        arguments.json.write_text(text + "\n")
    return int(bool(problems))


def line(name: str, row: dict) -> str:
    """Return one line of the table."""
    counts = ", ".join(f"{row[key]} {key}" for key in ("faults", "resumed", "said why", "finished first", "half-written"))
    return f"{name:30} {counts}; {len(row['problems'])} problems; {row['seconds']:.0f} s"


def unbroken(folder: pathlib.Path, processes: int, workers: int) -> pathlib.Path:
    """Make a run to which nothing happens; return its work directory."""
    story = prepared(folder, Fault(killed, processes=processes, workers=workers), 0)
    for process in start(story):
        if process.wait(LIMIT):
            raise SystemExit("the unbroken run failed: " + (folder / "log").read_text()[-2000:])
    return story.workdir


def prepared(folder: pathlib.Path, fault: Fault, seed: int) -> Story:
    """Make the images and the disk of a story."""
    story = Story(folder, seed, fault.processes, fault.workers, fault.mount)
    (folder / "disk").mkdir(parents=True)
    story.images.mkdir()
    for index in range(24):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(story.images / f"{index:02d}.png")
    if fault.mount:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", folder / "disk"], check=True)
    return story


def start(story: Story) -> list[subprocess.Popen]:
    """Start the run, or go on with it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    log = (story.folder / "log").open("w")
    task = {"workdir": str(story.workdir), "images": str(story.images), "workers": story.workers}
    started = []
    for index in range(story.processes):
        more = {"port": port, "index": index, "processes": story.processes} if story.processes > 1 else {}
        command = [sys.executable, __file__, "--workdir=.", "--run", json.dumps(task | more)]
        started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True))
    return started


def tell(folder: pathlib.Path, name: str, fault: Fault, count: int, seed: int, reference: pathlib.Path) -> dict:
    """Let a fault happen `count` times, in as many runs as that takes; return what came of it."""
    rng, begin = random.Random(f"{seed} {name}"), time.monotonic()
    row = dict.fromkeys(("faults", "resumed", "said why", "finished first", "half-written"), 0)
    row |= {"problems": [], "seconds": 0.0}
    part = 0
    while row["faults"] < count and len(row["problems"]) < 5:
        story = prepared(folder / str(part), fault, seed)
        part += 1
        try:
            one_run(story, name, fault, count, rng, row, reference)
        finally:
            if story.mounted:
                subprocess.run(["umount", "-l", story.folder / "disk"], check=False)
    row["seconds"] = time.monotonic() - begin
    return row


def one_run(story: Story, name: str, fault: Fault, count: int, rng, row: dict, reference: pathlib.Path) -> None:
    """Let faults happen to one run until it is finished, or enough have happened; then finish it and compare."""
    while row["faults"] < count:
        before, processes = story.last_step(), start(story)
        wait_for(functools.partial(_went_on, story, before, processes[0]), LIMIT)
        time.sleep(rng.uniform(0, 1.0))
        whole = story.complete()
        if processes[0].poll() is not None:
            row["finished first"] += 1
            break
        mend = fault.happen(story, processes[-1])
        row["faults"] += 1
        hung = not wait_for(functools.partial(_ended, processes), LIMIT)
        row["half-written"] += bool(list((story.workdir / "checkpoints").glob("*tmp*")))
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        mend()
        judge(story, name, processes, whole, hung, row)
        if story.last_step() >= STEPS:
            break
    for process in start(story):
        process.wait(LIMIT)
        if process.returncode:
            row["problems"].append(f"{name}: not resumed ({story.folder}): {said(story)[-300:]}")
            return
    row["resumed"] += 1
    if found := differences(reference, story.workdir):
        row["problems"].append(f"{name}: differs ({story.folder}): {'; '.join(found[:3])}")


def _went_on(story: Story, before: int, process: subprocess.Popen) -> bool:
    return story.last_step() > before or process.poll() is not None


def _ended(processes: list[subprocess.Popen]) -> bool:
    return all(process.poll() is not None for process in processes)


def judge(story: Story, name: str, processes: list, whole: set[int], hung: bool, row: dict) -> None:
    """Look at what a fault left: a line that says why, and the checkpoints of before."""
    from cp2_jax.runs.checkpoints import read

    text = said(story)
    if hung:
        row["problems"].append(f"{name}: hung ({story.folder}): {text[-200:]}")
    if "Traceback" in text:
        row["problems"].append(f"{name}: a traceback ({story.folder}): {text.splitlines()[-1][:200]}")
    if any(process.returncode > 0 for process in processes):
        row["said why"] += 1
    left = story.complete()
    if whole and (not left or max(left) < max(whole)):
        row["problems"].append(f"{name}: checkpoints {sorted(whole)} were complete, {sorted(left)} are left")
    for step in sorted(left)[-1:]:
        read(story.workdir / "checkpoints" / str(step))


def said(story: Story) -> str:
    """Return what the run printed."""
    return (story.folder / "log").read_text(errors="replace").strip() or "(nothing)"


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition holds; say whether it did within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
    """Name the metrics and arrays that are not the same to the last bit."""
    import jax

    from cp2_jax.runs.checkpoints import read
    from cp2_jax.runs.writers import VARYING, read_metrics

    lines = [read_metrics(run / "metrics.jsonl") for run in (first, second)]
    found = [] if len(lines[0]) == len(lines[1]) else [f"{len(lines[0])} and {len(lines[1])} lines of metrics"]
    for one, other in zip(*lines, strict=False):
        names = [n for n in one | other if not n.startswith(VARYING) and one.get(n) != other.get(n)]
        found += [f"step {one['step']}: {n}" for n in names]
    trees = [jax.tree_util.tree_leaves_with_path(read(run)[0]) for run in (first, second)]
    for (path, one), (_, other) in zip(*trees, strict=True):
        if np.asarray(one).tobytes() != np.asarray(other).tobytes():
            found.append(f"last checkpoint: {jax.tree_util.keystr(path)}")
    return found


def work(task: dict) -> int:
    """Be the run: what the command line does with a tiny pretraining."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "cp2_jax"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    from absl import flags

    from cp2_jax.cli import errors
    from cp2_jax.configs import pretrain_demo
    from cp2_jax.pretraining import run
    from cp2_jax.runs import distributed

    flags.FLAGS.mark_as_parsed()  # Grain's workers read them
    config = pretrain_demo.get_config()
    config.update_from_flattened_dict(
        {
            "steps": STEPS,
            "batch_size": 4,
            "bn_groups": 1,
            "save_every": SAVE_EVERY,
            "log_every": 1,
            "picture_every": 0,
            "probe_every": 0,
            "image_size": 16,
            "data.source": "folder",
            "data.path": task["images"],
            "data.workers": task["workers"],
            "loss.queue_size": 16,
            "augment.blur": 0.0,
            "model.resnet.width": 4,
            "model.resnet.stem_width": 4,
            "model.aspp.channels": 4,
            "model.aspp.dilations": (1, 2),
            "model.projection_dim": 8,
            "optimizer.warmup_steps": 1,
        }
    )

    def train():
        if "port" in task:
            address = f"localhost:{task['port']}"
            distributed.initialize(address, task["processes"], task["index"], heartbeat_timeout=10)
        run.train(config, task["workdir"], stall_timeout=60.0)

    return errors.guarded(train)


if __name__ == "__main__":
    sys.exit(main())
