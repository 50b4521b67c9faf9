"""Where a training step's time goes: a trace for viewers, and a table of the step's parts for people.

Parts are the step's named scopes (`pretrain.make_step`); the backward pass is what differentiation makes of the query's.
A fused operation counts as the part of its last instruction, so that borders between parts are soft.
"""

import pathlib
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.profiler import ProfileData

_OTHER = "momentum, queue, metrics, the rest"
PARTS = ("augment", "key forward", "query forward", "losses", "backward", "optimizer", _OTHER)


def part_of(op_name: str) -> str:
    """Return the part, one of `PARTS`, of an instruction by its scopes, e.g. 'jit(step)/transpose(jvp(query))/dot'."""
    if "augment" in op_name:
        return "augment"
    if "key_forward" in op_name:
        return "key forward"
    if "transpose(jvp(" in op_name:
        return "backward"
    if "losses" in op_name:
        return "losses"
    if "query" in op_name:
        return "query forward"
    return "optimizer" if "optimizer" in op_name else _OTHER


def scopes(program: str) -> dict[str, str]:
    """Return {instruction: op_name} of a compiled program's text."""
    found = {}
    for line in program.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        name = re.search(r'op_name="([^"]*)"', line)
        if match and name:
            found[match[1]] = name[1]
    return found


def self_times(events: list[tuple[str, float, float]]) -> dict[str, float]:
    """Return each operation's time without that of the operations within it (a loop's body, a call's), by name.

    Args:
      events: (name, begin, duration) of one timeline, in any unit.
    """
    total: dict[str, float] = defaultdict(float)
    open_events: list[tuple[str, float]] = []
    for name, begin, duration in sorted(events, key=lambda e: (e[1], -e[2])):
        while open_events and begin >= open_events[-1][1]:
            open_events.pop()
        if open_events:
            total[open_events[-1][0]] -= duration
        total[name] += duration
        open_events.append((name, begin + duration))
    return dict(total)


def device_times(trace: pathlib.Path, module: str) -> dict[str, float]:
    """Return the seconds that each operation of a program took in a trace, over all its executions and one device.

    Args:
      trace: an .xplane.pb file.
      module: the program's name, such as 'jit_step'.
    """
    planes = list(ProfileData.from_file(str(trace)).planes)
    devices = sorted((p for p in planes if p.name.startswith("/device:")), key=lambda p: p.name)
    total: dict[str, float] = defaultdict(float)
    # Without an accelerator, XLA's CPU threads hold the operations.
    for plane in devices[:1] or planes:
        for line in plane.lines:
            events = []
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats and str(stats.get("hlo_module", "")).startswith(module):
                    events.append((str(stats["hlo_op"]), event.start_ns, event.duration_ns))
            for name, nanoseconds in self_times(events).items():
                total[name] += nanoseconds / 1e9
    return dict(total)


def profile(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batches: Iterator,
    folder: pathlib.Path,
    *,
    steps: int = 5,
    warm_up: int = 3,
) -> str:
    """Run `warm_up` steps, then trace `steps` more; write the trace and `table.txt` into `folder`, return the table.

    Args:
      step: the jitted step, which may donate the state.
      batches: yields what `step` takes.

    The shares are of the operations' own time on the first device; on a CPU with several threads that is not the
    wall clock. Waiting for input is measured on the host, after each step was handed to the device.
    """
    batch = next(batches)
    compiled = step.lower(state, batch).compile()
    for _ in range(warm_up):
        state, metrics = compiled(state, batch)
        batch = next(batches)
    jax.block_until_ready((state, metrics))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    waited, begin = 0.0, time.perf_counter()
    with jax.profiler.trace(str(folder), profiler_options=options):
        for _ in range(steps):
            state, metrics = compiled(state, batch)
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
        jax.block_until_ready((state, metrics))
        elapsed = time.perf_counter() - begin
    trace = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    program = compiled.as_text()
    module = re.match(r"HloModule ([\w.\-]+)", program)[1]
    table = format_table(device_times(trace, module), scopes(program), steps, elapsed, waited)
    (folder / "table.txt").write_text(table)
    return table


def format_table(
    times: dict[str, float], names: dict[str, str], steps: int, elapsed: float, waited: float, longest: int = 10
) -> str:
    """Return the table of parts and of the longest operations.

    Args:
      times: seconds by operation, from `device_times`.
      names: from `scopes`.
      steps: number of steps that they cover.
      elapsed, waited: seconds of wall clock of these steps, and of waiting for input therein.
    """
    parts: dict[str, float] = defaultdict(float)
    for operation, seconds in times.items():
        parts[part_of(names.get(operation, ""))] += seconds
    busy = sum(parts.values())
    lines = [
        f"{steps} steps, {1e3 * elapsed / steps:.1f} ms each; "
        f"{100 * waited / elapsed:.1f}% of it the host waited for input",
        "",
        f"{'part':36s} {'ms a step':>10s} {'share':>7s}",
    ]
    share = lambda seconds: f"{1e3 * seconds / steps:10.2f} {100 * seconds / busy if busy else 0:6.1f}%"  # noqa: E731
    lines += [f"{part:36s} {share(parts[part])}" for part in PARTS]
    lines += [f"{'all operations':36s} {share(busy)}", "", "longest operations"]
    for operation, seconds in sorted(times.items(), key=lambda item: -item[1])[:longest]:
        lines.append(f"{operation[:36]:36s} {share(seconds)}  {names.get(operation, '')[-70:]}")
    return "\n".join(lines) + "\n"
