"""Is a run to which something happens the same run? Injects faults at random moments of small pretraining runs.

    python benchmarks/faults.py --faults 200 --workdir /tmp/faults [--only NAME] [--table]

Each story is one run in one work directory. A few times a fault happens to it (see `FAULTS`), what was broken is put right,
and the same command is run again, until the run is finished. Then every metric of every step and every array of the last
checkpoint must equal those of an unbroken run, bit for bit. After every fault: each checkpoint that was complete before is
whole (or newer ones are in its place), and a process that was not killed has said in one line why it stopped.

Every fault and every end of a story is a line of WORKDIR/faults.jsonl as soon as it is known, with what the run said. The
command may be broken off: called again, it goes on after the last finished story. --table prints what is there and ends.
Status 1 if anything was lost, differs, hung, or said more than its line. The moments follow from --seed.

Full and read-only disks need root and Linux, for they are small file systems of their own; otherwise they are left out.
"""

import argparse
import functools
import json
import os
import pathlib
import random
import re
import shutil
import sys
import time

import fault_runs
from fault_kinds import FAULTS, Fault, Story, killed, unmount
from fault_runs import LIMIT, STEPS, wait_for

PER_STORY = 5  # faults that happen to one run before it is finished
AT_THE_START = 0.25  # of the faults happen before the first new step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a new folder, or that of a call before")
    parser.add_argument("--only", default="", help="faults whose names contain this")
    parser.add_argument("--table", action="store_true", help="show what is known already")
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    log = arguments.workdir.absolute() / "faults.jsonl"
    if not arguments.table:
        fault_runs.prepare()
        run_all(arguments, log)
    return table(read(log))


def run_all(arguments: argparse.Namespace, log: pathlib.Path) -> None:
    """Tell the stories that are not told yet, those of one process first, of these the kind with the fewest faults."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    chosen = {
        name: fault
        for name, fault in FAULTS.items()
        if arguments.only in name and (root or not (fault.disk or fault.apart))
    }
    shares = sum(fault.share for fault in chosen.values())
    wanted = {name: -(-arguments.faults * fault.share // shares) for name, fault in chosen.items()}
    while True:
        done = told(read(log))
        missing = {name: count - done.get(name, 0) for name, count in wanted.items() if count > done.get(name, 0)}
        if not missing:
            return
        name = min(missing, key=lambda name: (chosen[name].processes, done.get(name, 0) / wanted[name]))
        number = 1 + max((entry["story"] for entry in read(log)), default=0)
        reference = unbroken(log.parent, chosen[name].processes)
        tell(log, name, chosen[name], number, min(PER_STORY, missing[name]), arguments.seed, reference)


def read(log: pathlib.Path) -> list[dict]:
    """Return the lines of all calls; one that was broken off is none."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def write(log: pathlib.Path, **entry) -> None:
    """Append a line, and show it."""
    with log.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps({key: value for key, value in entry.items() if value not in ([], "")})[:300], flush=True)


def told(entries: list[dict]) -> dict[str, int]:
    """Return how many faults of finished stories there are, by name."""
    finished, count = {entry["story"] for entry in entries if "end" in entry}, {}
    for entry in entries:
        if "moment" in entry and entry["story"] in finished:
            count[entry["fault"]] = count.get(entry["fault"], 0) + 1
    return count


def unbroken(folder: pathlib.Path, processes: int) -> pathlib.Path:
    """Make a run to which nothing happens, unless it is there; return its work directory."""
    place = folder / f"unbroken_{processes}_{STEPS}"
    if not (place / "done").exists():
        shutil.rmtree(place, ignore_errors=True)
        story = fault_runs.prepared(place, Fault(killed, processes=processes))
        for process in fault_runs.start(story):
            wait_for(process.ended, LIMIT)
            if process.status != 0:
                raise SystemExit("the unbroken run failed: " + story.err.read_text()[-2000:])
        (place / "done").touch()
    return Story(place).workdir


def tell(log: pathlib.Path, name: str, fault: Fault, number: int, count: int, seed: int, reference: pathlib.Path) -> None:
    """Let faults happen to one run, finish it and compare; the folder stays if something was wrong."""
    folder, begin = log.parent / f"story_{number}", time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    story, rng = fault_runs.prepared(folder, fault), random.Random(f"{seed} {name} {number}")
    bad, note = 0, functools.partial(write, log, fault=name, story=number)
    try:
        for _ in range(count):
            entry = one_fault(story, fault, rng)
            if entry is None:
                break
            note(**entry)
            bad += len(entry["problems"])
            if story.last_step() >= STEPS:  # some faults are survived
                break
        problems = ended(story, reference)
        bad += len(problems)
        end = "resumed" if not problems else "problem"
        note(end=end, problems=problems, seconds=round(time.monotonic() - begin, 1))
    finally:
        unmount(story)
    if not bad:
        shutil.rmtree(folder)


def one_fault(story: Story, fault: Fault, rng: random.Random) -> dict | None:
    """Start the run, let the fault happen, judge what it left; None if the run was finished before."""
    before, processes = story.last_step(), fault_runs.start(story)
    moment = "start" if rng.random() < AT_THE_START else "training"
    if moment == "training":
        wait_for(lambda: story.last_step() > before or processes[0].ended(), LIMIT)
        time.sleep(rng.uniform(0, 1.0))
    else:
        time.sleep(rng.uniform(0.1, 3.0))
    whole, step = story.complete(), story.last_step()
    if processes[0].ended() and processes[0].status == 0:
        return None
    victim, begin = processes[fault.victim], time.monotonic()
    mend = fault.happen(story, victim.pid)
    waited = [process for process in processes if not (fault.stays and process is victim)]
    hung = not wait_for(lambda: all([process.ended() for process in waited]), LIMIT)
    seconds = round(time.monotonic() - begin, 1)
    half = len(list((story.workdir / "checkpoints").glob("*tmp*")))
    for process in processes:
        process.show()
        process.kill()
    mend()
    statuses = [process.status for process in processes]
    problems = judge(story, statuses, whole, hung)
    jax = "the JAX distributed service detected fatal errors" in said(story)
    again = story.last_step() - max(story.complete(), default=0)  # steps that have to be taken once more
    found = {"seconds": seconds, "again": again, "jax": jax, "said": said(story), "problems": problems}
    return {"moment": moment, "step": step, "status": statuses, "half": half} | found


def judge(story: Story, statuses: list[int], whole: set[int], hung: bool) -> list[str]:
    """Look at what a fault left: a line that says why, and the checkpoints of before."""
    text, problems = said(story), []
    if hung:
        problems.append("hung")
    if "Traceback" in text or "Fatal Python error" in text:
        problems.append("a traceback")
    lines = [line for line in text.splitlines() if not re.match(r"WARNING:|[IWE]\d{4} ", line)]  # logs, by month and day
    if len(statuses) > 1 and "the JAX distributed service detected fatal errors" in text:  # and a stack trace; see docs
        lines = [line for line in lines if re.match("error: |stopped |no step |interrupted", line)]
    if len(lines) > len(statuses):
        problems.append(f"{len(lines)} lines")
    if any(status > 0 for status in statuses) and not lines:
        problems.append(f"left with {statuses} and no line")
    left = story.complete()
    if whole and (not left or max(left) < max(whole)):
        problems.append(f"checkpoints {sorted(whole)} were complete, {sorted(left)} are left")
    directory = story.workdir / "checkpoints"
    return problems + fault_runs.in_a_child(lambda: fault_runs.unreadable(directory), story.folder)


def ended(story: Story, reference: pathlib.Path) -> list[str]:
    """Run on to the end; return what is not as in the unbroken run."""
    for process in fault_runs.start(story):
        wait_for(process.ended, LIMIT)
        if process.status != 0:
            process.show()
            process.kill()
            return [f"not resumed: status {process.status}: {said(story)[-2000:]}"]
    return fault_runs.in_a_child(lambda: fault_runs.differences(reference, story.workdir), story.folder)


def said(story: Story) -> str:
    """Return what the run said on stderr."""
    return story.err.read_text(errors="replace").strip()[-4000:] if story.err.exists() else ""


def table(entries: list[dict]) -> int:
    """Print what came of each kind of fault; return 1 if there is a problem.

    Beside counts: `again`, the steps that had to be taken once more, and `seconds`, the longest from a fault to the end of
    all processes that it was not meant to leave.
    """
    heads = ("faults", "at start", "said why", "JAX aborts", "half-written", "again", "seconds", "runs", "equal")
    widths, bad = (6, 8, 8, 10, 12, 6, 7, 5, 6), 0
    print(f"{'fault':38}", *(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)), "problems")
    for name in [*FAULTS, "all"]:
        mine = [entry for entry in entries if name in (entry["fault"], "all")]
        faults, ends = [e for e in mine if "moment" in e], [e for e in mine if "end" in e]
        problems = [problem for entry in mine for problem in entry["problems"]]
        columns = [
            len(faults),
            sum(entry["moment"] == "start" for entry in faults),
            sum(any(status > 0 for status in entry["status"]) for entry in faults),
            sum(entry.get("jax", False) for entry in faults),
            sum(entry["half"] > 0 for entry in faults),
            sum(max(0, entry.get("again", 0)) for entry in faults),
            max((round(entry.get("seconds", 0)) for entry in faults), default=0),
            len(ends),
            sum(entry["end"] == "resumed" for entry in ends),
        ]
        print(f"{name:38}", *(f"{n:{width}d}" for n, width in zip(columns, widths, strict=True)), len(problems))
        bad = len(problems)
    for entry in entries:
        for problem in entry["problems"]:
            print(f"story {entry['story']}, {entry['fault']}: {problem[:300]}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
