"""What the fuzzers share: inputs that repeat, bounds on time and memory, workers that may be killed."""

import argparse
import collections
import dataclasses
import importlib
import json
import multiprocessing
import os
import pathlib
import resource
import time
from collections.abc import Callable, Mapping

import numpy as np

SECONDS, MIB = 5.0, 400.0  # bounds for one input: time, and growth of the process's peak memory
EXTREMES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of input.

    seeds: valid files by name. read: what is tried with (bytes, name). error: the only one that may come out. one_line:
    whether its message must be a single line.
    """

    seeds: dict[str, bytes]
    read: Callable[[bytes, str], None]
    error: type[Exception]
    one_line: bool = True


def make_input(kind: Kind, seed: int, index: int, count: int) -> tuple[str, bytes]:
    """Return (name, bytes) of input `index` of `count`.

    The first inputs are the seeds cut at every length, for as many as half of the count has room for (spread evenly); the
    rest is changed at random.
    """
    names = list(kind.seeds)
    cuts = sum(len(data) for data in kind.seeds.values())
    shown = min(cuts, count // 2)
    if index < shown:
        place = index * cuts // shown
        for name in names:
            if place < len(kind.seeds[name]):
                return name, kind.seeds[name][:place]
            place -= len(kind.seeds[name])
    rng = np.random.default_rng([seed, index])
    name = names[int(rng.integers(len(names)))]
    data = bytearray(kind.seeds[name])
    for _ in range(int(rng.choice([1, 1, 2, 4, 8]))):
        _change(data, kind.seeds[names[int(rng.integers(len(names)))]], rng)
    return name, bytes(data)


def _change(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """Change a file in one place; headers, which are at the beginning, are hit as often as all the rest."""
    if not data:
        data += other
    reach = len(data) if rng.random() < 0.5 else min(len(data), 64)
    place, length = int(rng.integers(reach)), int(rng.integers(1, 17))
    what = int(rng.integers(6))
    if what == 0:
        data[place] ^= 1 << int(rng.integers(8))
    elif what == 1:
        data[place] = int(rng.choice(EXTREMES))
    elif what == 2:
        data[place : place + 4] = int(rng.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])).to_bytes(
            4, rng.choice(["big", "little"])
        )
    elif what == 3:
        del data[place : place + length]
    elif what == 4:
        data[place:place] = data[place : place + length]
    else:
        start = int(rng.integers(len(other)))
        data[place : place + length] = other[start : start + length]


def try_input(kind: Kind, name: str, data: bytes) -> str:
    """Return "read", "refused", or what came out that should not."""
    begin, peak = time.process_time(), _peak()
    try:
        kind.read(data, name)
        outcome = "read"
    except kind.error as error:
        good = str(error) and not (kind.one_line and "\n" in str(error))
        outcome = "refused" if good else f"no single line: {error!r}"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"[:200]
    seconds, grown = time.process_time() - begin, _peak() - peak
    if seconds > SECONDS:
        outcome = f"took {seconds:.1f} s"
    return outcome if grown <= MIB else f"took {grown:.0f} MiB"


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _work(module, name, seed, count, numbers, here, results):
    """Try inputs in a process of its own; `here` says which one is being tried."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and libpng print what is wrong with each file
    kind = importlib.import_module(module).kinds()[name]
    tally, wrong, slowest = collections.Counter(), [], 0.0
    for index in numbers:
        here.value = index
        file, data = make_input(kind, seed, index, count)
        begin = time.perf_counter()
        outcome = try_input(kind, file, data)
        slowest = max(slowest, time.perf_counter() - begin)
        tally[outcome if outcome in ("read", "refused") else "wrong"] += 1
        if outcome not in ("read", "refused"):
            wrong.append((index, file, len(data), outcome))
    results.put((tally, wrong, slowest, _peak()))


def run(module: str, name: str, count: int, seed: int, processes: int) -> dict:
    """Try `count` inputs of a kind of `module.kinds()` and return what came out."""
    context = multiprocessing.get_context("spawn")
    tally, wrong, slowest, peak = collections.Counter(), [], 0.0, 0.0
    waiting = [range(first, count, processes) for first in range(processes)]
    running = []
    while waiting or running:
        while waiting and len(running) < processes:
            here, results, numbers = context.Value("q", -1), context.SimpleQueue(), waiting.pop()
            process = context.Process(target=_work, args=(module, name, seed, count, numbers, here, results))
            process.start()
            running.append((process, here, results, numbers))
        process, here, results, numbers = running.pop(0)
        while process.is_alive() and results.empty():
            process.join(0.1)
        if results.empty():  # killed: the inputs before it were fine
            if here.value < 0:
                raise RuntimeError("the workers do not start")
            wrong.append((here.value, "", 0, f"the process ended with status {process.exitcode}"))
            waiting.append(range(here.value + numbers.step, numbers.stop, numbers.step))
            continue
        more, bad, slow, high = results.get()
        process.join()
        tally, wrong, slowest, peak = tally + more, wrong + bad, max(slowest, slow), max(peak, high)
    return {"inputs": count, **tally, "wrong": wrong, "slowest_seconds": slowest, "peak_mib": peak}


def main(module: str, shares: Mapping[str, float], count: int, description: str) -> int:
    """Read the arguments, try the inputs, print the table; return the exit status.

    Args:
      module: whose `kinds()` are tried. shares: of the inputs, by kind. count: of inputs, by default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--count", type=int, default=count, help="inputs of all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", help="KIND:NUMBER, one input, whose error is raised")
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    args = parser.parse_args()
    counts = {name: round(share * args.count) for name, share in shares.items()}
    if args.only:
        name, _, number = args.only.partition(":")
        kind = importlib.import_module(module).kinds()[name]
        kind.read(*make_input(kind, args.seed, int(number), counts[name])[::-1])
        return 0
    results = {}
    print(f"{'kind':10} {'inputs':>8} {'read':>8} {'refused':>8} {'wrong':>6} {'slowest':>9} {'peak memory':>12}")
    for name, count in counts.items():
        results[name] = one = run(module, name, count, args.seed, args.processes)
        print(
            f"{name:10} {one['inputs']:8,d} {one.get('read', 0):8,d} {one.get('refused', 0):8,d} {len(one['wrong']):6d} "
            f"{one['slowest_seconds']:7.2f} s {one['peak_mib']:8.0f} MiB",
            flush=True,
        )
        for index, file, size, outcome in one["wrong"][:20]:
            print(f"  {name}:{index} ({file}, {size} bytes): {outcome}")
    if args.json:
        args.json.write_text(json.dumps({"seed": args.seed, **results}, indent=2) + "\n")
    return int(any(one["wrong"] for one in results.values()))
