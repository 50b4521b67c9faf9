"""A plan from a compiled step: bounds on time, what the host must deliver, and both as a table."""

import dataclasses
import itertools
from collections.abc import Sequence

from ml_collections import ConfigDict

from cp2_jax.lines import wrap
from cp2_jax.planning.chips import Topology
from cp2_jax.planning.program import Program, decoded_per_sample
from cp2_jax.runs import settings

_DAY = 86400
_NAME = 49  # characters of an operation's name, which no line may break: 80 columns less the first one


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bounds for one compiled step; None where the chip's specification is not known or the program did not compile.

    Attributes:
      steps, steps_per_epoch: of the schedule.
      compute, memory, links: least seconds of a step by each of the chip's three limits.
      bound: the largest of the three.
      decode_rate: images that a host must decode and crop a second to keep up with `bound`.
      hours: of the whole schedule, by efficiency (the share of `bound`'s speed that is reached).
      largest_batch: per device, by proportion (an estimate).
    """

    steps: int
    steps_per_epoch: int
    compute: float | None
    memory: float | None
    links: float | None
    bound: float | None
    epochs_per_day: float | None
    decode_rate: float | None
    hours: dict[float, float]
    largest_batch: int | None


def plan(
    config: ConfigDict, topology: Topology, program: Program, images: int, efficiencies: Sequence[float] = (1.0, 0.5, 0.25)
) -> Plan:
    """Return the bounds that follow from a compiled step and the chip's specification.

    Args:
      config: what was compiled.
      topology: what it was compiled for.
      program: the compiled step.
      images: of an epoch.
      efficiencies: shares of the bound's speed to give hours for.
    """
    steps, per_epoch = settings.total_steps(config, images), settings.steps_per_epoch(images, config.batch_size)
    compute = memory = links = bound = None
    if topology.chip and program.flops and program.collectives is not None:
        compute = program.flops / topology.chip.flops
        memory = program.bytes_accessed / topology.chip.memory_rate
        links = sum(c.moved for c in program.collectives) / topology.chip.link_rate
        bound = max(compute, memory, links)
    return Plan(
        steps=steps,
        steps_per_epoch=per_epoch,
        compute=compute,
        memory=memory,
        links=links,
        bound=bound,
        epochs_per_day=bound and _DAY / bound / per_epoch,
        decode_rate=bound and decoded_per_sample(config) * config.batch_size / program.hosts / bound,
        hours={e: steps * bound / e / 3600 for e in efficiencies} if bound else {},
        largest_batch=_largest_batch(program),
    )


def _largest_batch(program: Program) -> int | None:
    """Estimate what a device could hold: temporaries and batches in proportion to the batch, the rest as it is."""
    if program.memory is None or program.temporaries is None:
        return None
    here = program.batch_size // program.devices
    growing = program.temporaries + program.batch
    return int((program.memory - (program.peak - growing)) / (growing / here))


def as_dict(program: Program, plan: Plan) -> dict:
    """Return both as JSON values."""
    values = dataclasses.asdict(program) | {"fits": program.fits}
    if program.collectives is not None:
        values["collectives"] = [dataclasses.asdict(c) | {"moved": c.moved} for c in program.collectives]
    return values | {"plan": dataclasses.asdict(plan) | {"hours": {str(k): v for k, v in plan.hours.items()}}}


def table(program: Program, plan: Plan) -> str:
    """Return the plan as lines of text."""
    each = program.batch_size // program.devices
    rows = [
        ("devices", f"{program.devices} ({program.topology}), {program.hosts} host{'s' * (program.hosts != 1)}"),
        ("batch", f"{program.batch_size}, {each} a device"),
        ("parameters (all encoders)", _size(program.parameters)),
        ("optimiser state", _size(program.optimizer)),
        ("queue", _size(program.queue)),
        ("batches kept ready", _size(program.batch)),
        ("temporaries", _size(program.temporaries)),
        ("program", _size(program.code)),
        ("peak", _peak(program)),
        ("largest batch a device", _or_unknown(plan.largest_batch, "about {} (by proportion; compile it to be sure)")),
        ("work", _or_unknown(program.flops and program.flops / 1e9, "{:.1f} GFLOP (without padding)")),
        ("memory traffic", _size(program.bytes_accessed)),
        *_traffic_rows(program),
        *_collective_rows(program),
        ("step by compute, at least", _seconds(plan.compute)),
        ("step by memory, at least", _seconds(plan.memory)),
        ("step by links, at least", _seconds(plan.links)),
        ("step, at least", _seconds(plan.bound)),
        ("epochs a day, at most", _or_unknown(plan.epochs_per_day, "{:.1f}")),
        ("images decoded a second", _or_unknown(plan.decode_rate, "{:.0f} on each host, to keep up with that")),
        ("whole schedule", f"{plan.steps} steps, {plan.steps_per_epoch} an epoch"),
        *((f"  at {100 * share:.0f}% of that speed", f"{hours:.1f} hours") for share, hours in plan.hours.items()),
        ("compiled in", f"{program.compile_seconds:.0f} s"),
    ]
    lines = [wrap(value, first=f"{name:28s} ", further=" " * 31, cut=True) for name, value in rows]
    return "\n".join(itertools.chain.from_iterable(lines))


def _collective_rows(program: Program) -> list[tuple[str, str]]:
    if program.collectives is None:
        return []
    rows, groups = [], {}
    for one in program.collectives:
        groups.setdefault((one.kind, one.group), []).append(one)
    for (kind, group), members in sorted(groups.items()):
        total, largest = sum(c.bytes for c in members), max(members, key=lambda c: c.bytes)
        what = (
            f"{len(members)} among {group} devices, {_size(total)}; largest {_size(largest.bytes)}, {largest.name[-_NAME:]}"
        )
        rows.append((kind, what))
    return rows or [("communication", "none")]


def _traffic_rows(program: Program) -> list[tuple[str, str]]:
    parts = sorted((program.traffic or {}).items(), key=lambda part: -part[1])
    each = program.batch_size // program.devices
    # Of the last part's long name its end: "the rest".
    return [(f"  {part.split(', ')[-1]}", f"{_size(count)}, {_size(count / each)} a sample") for part, count in parts]


def _peak(program: Program) -> str:
    have = "the device's memory is not known" if program.memory is None else f"of {_size(program.memory)}"
    if program.error:
        return f"DOES NOT FIT: {_size(program.peak)} {have} ({program.error})"
    verdict = {None: "", True: ", fits", False: ", DOES NOT FIT"}[program.fits]
    return f"{_size(program.peak)} {have}{verdict}"


def _size(count: float | None) -> str:
    if count is None:
        return "unknown"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000


def _seconds(value: float | None) -> str:
    return _or_unknown(value and value * 1000, "{:.2f} ms")


def _or_unknown(value: float | None, form: str) -> str:
    return "unknown" if value is None else form.format(value)
