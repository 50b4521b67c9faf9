"""Where a training step's time goes: a trace for viewers, and a table of the step's parts for people.

Parts are the step's named scopes (`pretraining.step.make_step`); the backward pass is what differentiation makes of the
query's. A fused operation counts as the part of its last instruction, so that borders between parts are soft.
"""

import pathlib
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.profiler import ProfileData

from cp2_jax.runs import timelines

_OTHER = "momentum, queue, metrics, the rest"
# What JAX calls GPUs, as a platform or a device's.
GPUS = ("gpu", "cuda", "rocm")

_UNNAMED = "copies, other programs"
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


def operations(trace: pathlib.Path, module: str) -> tuple[list[list[timelines.Event]], bool]:
    """Return (the timelines of a trace that hold operations of a program, whether they are of an accelerator).

    Args:
      trace: an .xplane.pb file.
      module: the program's name, such as 'jit_step'.

    Of several accelerators the first. Events beside the program's, such as copies, have the name "": they keep the
    device busy, too. Without an accelerator, XLA's CPU threads hold the operations, and their other events are nobody's.
    """
    planes = list(ProfileData.from_file(str(trace)).planes)
    devices = sorted((p for p in planes if p.name.startswith("/device:")), key=lambda p: p.name)
    found = []
    for plane in devices[:1] or planes:
        for line in plane.lines:
            events = []
            for event in line.events:
                stats = dict(event.stats)
                ours = "hlo_op" in stats and str(stats.get("hlo_module", "")).startswith(module)
                name = str(stats["hlo_op"]) if ours else ""
                if ours or devices:
                    events.append(timelines.Event(name, event.start_ns, event.start_ns + event.duration_ns))
            if any(event.name for event in events):
                found.append(events)
    return found, bool(devices)


def device_times(trace: pathlib.Path, module: str) -> tuple[dict[str, float], float]:
    """Return (the seconds that each operation of a program took in a trace, the seconds that the device was busy).

    Args:
      trace, module: see `operations`. All the program's executions count, on one device.
    """
    lines, accelerator = operations(trace, module)
    times = timelines.own_times(lines) if accelerator else timelines.summed_times(lines)
    busy = timelines.busy(event for line in lines for event in line) if accelerator else sum(map(timelines.busy, lines))
    return {name: time / 1e9 for name, time in times.items()}, busy / 1e9


def compile_named(lowered: jax.stages.Lowered, platform: str) -> jax.stages.Compiled:
    """Compile a program so that a trace, and its own text, name its operations on any platform.

    XLA on GPUs replays most operations as one CUDA graph, whose kernels a trace shows without names. Without graphs the
    step took as long (99.5 against 99.4 ms on an H200).
    """
    graphs_off = {"xla_gpu_enable_command_buffer": "", "xla_gpu_graph_min_graph_size": 2**31 - 1}
    return lowered.compile(compiler_options=graphs_off if platform in GPUS else None)


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
      step: the jitted step, which may donate the state, or what `compile_named` made of it.
      batches: yields what `step` takes.

    The shares are of the time that the first device was busy; on a CPU, of the operations' own time over all threads,
    which is not the wall clock. Waiting for input is measured on the host, after each step was handed to the device.
    """
    batch = next(batches)
    ready = isinstance(step, jax.stages.Compiled)
    compiled = step if ready else compile_named(step.lower(state, batch), jax.default_backend())
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
    table = format_table(*device_times(trace, module), scopes(program), steps, elapsed, waited)
    (folder / "table.txt").write_text(table, encoding="utf-8")
    return table


def format_table(
    times: dict[str, float],
    busy: float,
    names: dict[str, str],
    steps: int,
    elapsed: float,
    waited: float,
    longest: int = 10,
) -> str:
    """Return the table of parts and of the longest operations.

    Args:
      times, busy: from `device_times`.
      names: from `scopes`.
      steps: number of steps that they cover.
      elapsed, waited: seconds of wall clock of these steps, and of waiting for input therein.
    """

    def share(seconds):
        return f"{1e3 * seconds / steps:10.2f} {100 * seconds / busy if busy else 0:6.1f}%"

    parts: dict[str, float] = defaultdict(float)
    for operation, seconds in times.items():
        parts[part_of(names.get(operation, "")) if operation else _UNNAMED] += seconds
    lines = [
        f"{steps} steps, {1e3 * elapsed / steps:.1f} ms each; "
        f"{100 * waited / elapsed:.1f}% of it the host waited for input",
        "",
        f"{'part':36s} {'ms a step':>10s} {'share':>7s}",
    ]
    shown = PARTS + ((_UNNAMED,) if parts[_UNNAMED] else ())
    lines += [f"{part:36s} {share(parts[part])}" for part in shown]
    lines += [
        f"{'all operations':36s} {share(sum(parts.values()))}",
        f"{'busy':36s} {share(busy)}",
        "",
        "longest operations",
    ]
    named = {operation: seconds for operation, seconds in times.items() if operation}
    for operation, seconds in sorted(named.items(), key=lambda item: -item[1])[:longest]:
        lines.append(f"{operation[:36]:36s} {share(seconds)}  {names.get(operation, '')[-70:]}")
    return "\n".join(lines) + "\n"
