"""Whose time it is: events within others, events that merely overlap, several streams; against a count of every moment."""

import collections
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp2_jax.runs import profiling, timelines
from cp2_jax.runs.timelines import Event

EVENTS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 30), st.integers(0, 12)).map(
        lambda e: Event(e[0], e[1], e[1] + e[2])
    ),
    max_size=14,
)


def events(*rows):
    return [Event(name, begin, begin + duration) for name, begin, duration in rows]


def moments(timeline):
    """The whole numbers t such that something runs from t to t + 1."""
    return {t for event in timeline for t in range(event.begin, event.end)}


def test_time_within_another_operation_counts_once():
    timeline = events(
        ("while", 0, 100), ("dot", 10, 30), ("inner", 12, 5), ("dot", 50, 20), ("after", 100, 7), ("while", 200, 10)
    )
    expected = {"while": 60, "dot": 45, "inner": 5, "after": 7}
    assert timelines.own_times([timeline]) == timelines.own_times([timeline[::-1]]) == expected
    assert timelines.busy(timeline) == 117


def test_kernels_that_overlap_are_not_within_one_another():
    """Three kernels of 100, each begun 2 before the last one's end: taken for nested, the second came out negative."""
    timeline = events(("a", 0, 100), ("b", 98, 100), ("c", 196, 100))
    assert timelines.own_times([timeline]) == {"a": 100, "b": 98, "c": 98}
    # A short one between two long ones, overlapping both.
    timeline = events(("a", 0, 100), ("short", 99, 3), ("c", 101, 100))
    assert timelines.own_times([timeline]) == {"a": 100, "short": 2, "c": 99}


def test_a_loop_whose_kernels_overlap():
    timeline = events(("while", 0, 50), ("a", 5, 20), ("b", 24, 20), ("next", 49, 11))
    assert timelines.own_times([timeline]) == {"while": 11, "a": 20, "b": 19, "next": 10}


def test_another_stream_counts_where_the_busiest_rests():
    compute, copies = events(("a", 0, 10), ("b", 20, 15)), events(("copy", 5, 20), ("copy", 28, 4))
    assert timelines.own_times([copies, compute]) == {"copy": 10, "a": 10, "b": 15}
    assert timelines.busy(compute + copies) == 35
    assert timelines.summed_times([copies, compute]) == {"copy": 24, "a": 10, "b": 15}


@given(st.lists(EVENTS, max_size=4))
def test_times_add_up_to_the_busy_time(several):
    """Whatever the trace holds: no time is negative, none is counted twice, none is lost."""
    every = [event for timeline in several for event in timeline]
    times = timelines.own_times(several)
    assert min(times.values(), default=0) >= 0 and set(times) == {event.name for event in every}
    assert sum(times.values()) == timelines.busy(every) == len(moments(every))


@given(EVENTS)
def test_a_moment_belongs_to_an_event_that_runs_and_holds_no_other(timeline):
    owned = collections.Counter()
    for piece in timelines.exclusive(timeline):
        for t in range(piece.begin, piece.end):
            owned[t] += 1
            running = [e for e in timeline if e.begin <= t < e.end]
            innermost = [e for e in running if not any(e.holds(o) and not o.holds(e) for o in running)]
            assert piece.name in {e.name for e in innermost if e.begin == min(i.begin for i in innermost)}
    assert set(owned) == moments(timeline) and set(owned.values()) <= {1}


def line(*rows):
    """A line of a trace; rows of another program than jit_step have the name None."""
    found = []
    for name, begin, duration in rows:
        stats = {"hlo_op": name, "hlo_module": "jit_step(1)"} if name else {"bytes": 4}
        found.append(SimpleNamespace(stats=list(stats.items()), start_ns=begin, duration_ns=duration))
    return SimpleNamespace(events=found)


@pytest.fixture
def trace(monkeypatch):
    """Puts planes, as {name: lines}, in the place of a file."""

    def put(planes):
        planes = [SimpleNamespace(name=name, lines=lines) for name, lines in planes.items()]
        monkeypatch.setattr(
            profiling, "ProfileData", SimpleNamespace(from_file=lambda path: SimpleNamespace(planes=planes))
        )

    return put


def test_a_trace_of_gpus(trace):
    """Streams of the first device; copies keep it busy; a line without its operations does not count."""
    stream = line(("fusion.1", 0, 100), ("dot", 98, 100), (None, 300, 50), ("fusion.1", 340, 60))
    other = line((None, 0, 10_000))
    trace({"/host:CPU": [line(("dot", 0, 9))], "/device:GPU:1": [line(("dot", 0, 7))], "/device:GPU:0": [stream, other]})
    times, busy = profiling.device_times("trace", "jit_step")
    assert times == pytest.approx({"fusion.1": 150e-9, "dot": 98e-9, "": 50e-9})
    assert busy == pytest.approx(298e-9) and busy == pytest.approx(sum(times.values()))


def test_a_trace_of_a_cpu(trace):
    """Threads work side by side: their times are summed, and what else they did is nobody's."""
    trace({"/host:CPU": [line(("dot", 0, 10), (None, 50, 50)), line(("dot", 0, 8), ("add", 8, 2)), line((None, 0, 99))]})
    times, busy = profiling.device_times("trace", "jit_step")
    assert times == pytest.approx({"dot": 18e-9, "add": 2e-9}) and busy == pytest.approx(20e-9)
