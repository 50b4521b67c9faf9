"""Which operation a device's time belongs to, where the events of its timelines lie within one another or overlap.

Two things look alike in a trace. A loop's event holds those of its body: time within an inner event is the inner one's.
Kernels of one GPU stream overlap by microseconds, the next beginning before the last has ended: neither is inside the
other. An event is inside another only if it also ends within it; of two that merely overlap, the earlier keeps its time.
"""

import dataclasses
import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that took time on a timeline: `begin` and `end` in any unit, `begin` <= `end`."""

    name: str
    begin: float
    end: float

    def holds(self, other: "Event") -> bool:
        """Whether the other lies within this one."""
        return self.begin <= other.begin and other.end <= self.end


def exclusive(events: Iterable[Event]) -> list[Event]:
    """Return disjoint pieces, in order, that cover exactly the times at which something ran, each with its event's name.

    A moment belongs to an event that holds no other that is running; of several such, to the one that began first.
    """
    ordered = sorted((e for e in events if e.end > e.begin), key=lambda e: (e.begin, -e.end))
    moments = sorted({e.begin for e in ordered} | {e.end for e in ordered})
    pieces: list[Event] = []
    running: list[Event] = []
    upcoming = 0
    for begin, end in zip(moments, moments[1:], strict=False):
        running = [e for e in running if e.end > begin]
        while upcoming < len(ordered) and ordered[upcoming].begin <= begin:
            running.append(ordered[upcoming])
            upcoming += 1
        if not running:
            continue
        # `running` is in the order of beginning, longer first: what an event holds comes after it.
        owner = next(e for i, e in enumerate(running) if not any(e.holds(later) for later in running[i + 1 :]))
        if pieces and pieces[-1].name == owner.name and pieces[-1].end == begin:
            pieces[-1] = Event(owner.name, pieces[-1].begin, end)
        else:
            pieces.append(Event(owner.name, begin, end))
    return pieces


def busy(events: Iterable[Event]) -> float:
    """Return how long at least one of the events ran."""
    total, reached = 0.0, float("-inf")
    for event in sorted(events, key=lambda e: e.begin):
        total += max(0.0, event.end - max(event.begin, reached))
        reached = max(reached, event.end)
    return total


def own_times(timelines: Sequence[Sequence[Event]]) -> dict[str, float]:
    """Return each name's own time on a device whose timelines (a GPU's streams) run side by side.

    Within a timeline by `exclusive`. Of several, the busiest counts whole, and another where none before it is busy, so
    that the sum over all names is the time at which the device did anything. Names that never own a moment get 0.
    """
    total: dict[str, float] = {event.name: 0.0 for timeline in timelines for event in timeline}
    covered: list[Event] = []
    for timeline in sorted(timelines, key=busy, reverse=True):
        pieces = _outside(exclusive(timeline), covered)
        for piece in pieces:
            total[piece.name] += piece.end - piece.begin
        covered = list(heapq.merge(covered, pieces, key=lambda e: e.begin))
    return total


def summed_times(timelines: Sequence[Sequence[Event]]) -> dict[str, float]:
    """Return each name's own time summed over the timelines, which are threads that all do work of their own."""
    total: dict[str, float] = defaultdict(float)
    for timeline in timelines:
        for name, time in own_times([timeline]).items():
            total[name] += time
    return dict(total)


def _outside(pieces: list[Event], covered: list[Event]) -> list[Event]:
    """Return the parts of disjoint `pieces` that do not lie within the disjoint `covered`; both in order."""
    left, index = [], 0
    for piece in pieces:
        begin = piece.begin
        while index < len(covered) and covered[index].end <= begin:
            index += 1
        at = index
        while at < len(covered) and covered[at].begin < piece.end:
            if covered[at].begin > begin:
                left.append(Event(piece.name, begin, covered[at].begin))
            begin = max(begin, covered[at].end)
            at += 1
        if begin < piece.end:
            left.append(Event(piece.name, begin, piece.end))
    return left
