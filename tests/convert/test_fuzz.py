"""A small share of benchmarks/fuzz_checkpoints.py: damage of every kind of file gives the documented error alone."""

import importlib

import pytest
from helpers.paths import ROOT

from cp2_jax.convert.containers import files, pickles

COUNT = 1200
pytestmark = pytest.mark.filterwarnings("ignore")  # of damaged escapes in text of old pickles


@pytest.fixture(scope="module")
def fuzz():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("fuzz_checkpoints")


@pytest.fixture(scope="module")
def fuzzing(fuzz):
    return importlib.import_module("fuzzing")


KINDS = ["container", "network", "tensorflow", "text"]


@pytest.mark.parametrize("name", KINDS)
def test_every_seed_is_read(fuzz, fuzzing, name):
    kind = fuzz.kinds()[name]
    assert {file: fuzzing.try_input(kind, file, data) for file, data in kind.seeds.items()} == dict.fromkeys(
        kind.seeds, "read"
    )


@pytest.mark.parametrize("name", KINDS)
def test_only_documented_errors_come_out(fuzz, fuzzing, name):
    kind, count = fuzz.kinds()[name], round(fuzz.SHARES[name] * COUNT)
    outcomes = {}
    for index in range(count):
        outcomes.setdefault(fuzzing.try_input(kind, *fuzzing.make_input(kind, 1, index, count)), index)
    assert outcomes.keys() == {"read", "refused"}, outcomes


def test_an_error_that_is_not_documented_is_noticed(fuzz, fuzzing, monkeypatch):
    """The containers' reader without its guard raises what parsing raises."""
    monkeypatch.setattr(files, "_BROKEN", ())
    kind, found = fuzz.kinds()["container"], set()
    for index in range(300):
        found.add(fuzzing.try_input(kind, *fuzzing.make_input(kind, 1, index, 600)).split(":")[0])
    assert found - {"read", "refused"}
    monkeypatch.setattr(pickles, "_MOST_OPCODES", 1)
    assert fuzzing.try_input(kind, "protocol2.pkl", kind.seeds["protocol2.pkl"]) == "refused"
