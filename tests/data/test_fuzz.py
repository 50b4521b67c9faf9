"""A small share of benchmarks/fuzz_images.py: damage of every kind of file gives the documented error alone."""

import importlib
import resource

import pytest
from helpers.paths import DATA, ROOT

from cp2_jax.data.errors import UnreadableImage
from cp2_jax.data.images.decoding import decode

COUNT = 2000
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata


@pytest.fixture(scope="module")
def fuzz():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("fuzz_images")


@pytest.fixture(scope="module")
def fuzzing(fuzz):
    return importlib.import_module("fuzzing")


@pytest.mark.parametrize("name", ["image", "mask", "text"])
def test_only_documented_errors_come_out(fuzz, fuzzing, name, capfd):
    kind, count = fuzz.kinds()[name], round(fuzz.SHARES[name] * COUNT)
    outcomes = {}
    for index in range(count):
        outcomes.setdefault(fuzzing.try_input(kind, *fuzzing.make_input(kind, 1, index, count)), index)
    capfd.readouterr()  # libtiff and libpng print what is wrong with each file
    assert outcomes.keys() == {"read", "refused"}, outcomes


@pytest.mark.parametrize("name", ["image", "mask", "text"])
def test_every_seed_is_read(fuzz, fuzzing, name):
    """But for those that are there to be refused: a range that is unknown, loss, another encoding."""
    kind = fuzz.kinds()[name]
    refused = {file for file, data in kind.seeds.items() if fuzzing.try_input(kind, file, data) != "read"}
    assert (
        refused
        == {
            "image": {"float.tif", "int.tif", "deep_float.tif"},
            "mask": {"grey.jpeg", "grey16.png"},
            "text": {"latin-1", "utf-16-le"},
        }[name]
    )


def test_inputs_repeat_and_the_first_are_cut(fuzz, fuzzing):
    kind = fuzz.kinds()["mask"]
    made = [fuzzing.make_input(kind, 5, index, 300) for index in range(300)]
    assert made == [fuzzing.make_input(kind, 5, index, 300) for index in range(300)]
    assert all(kind.seeds[name].startswith(data) for name, data in made[:150])
    assert made[150:] != [fuzzing.make_input(kind, 6, index, 300) for index in range(150, 300)]


def test_an_unexpected_error_and_a_bound_are_noticed(fuzzing, monkeypatch):
    def raises(data, name):
        raise {0: KeyError, 1: ValueError}[len(data)]("oh")

    kind = fuzzing.Kind({"a": b""}, raises, ValueError)
    assert fuzzing.try_input(kind, "a", b"") == "KeyError: 'oh'" and fuzzing.try_input(kind, "a", b"1") == "refused"
    monkeypatch.setattr(fuzzing, "SECONDS", -1.0)
    assert fuzzing.try_input(kind, "a", b"1").startswith("took")


@pytest.mark.parametrize("file", sorted((DATA / "fuzzed_images").iterdir()), ids=lambda path: path.name)
def test_files_that_were_other_errors_or_took_gigabytes(file):
    """KeyError (a, b), AssertionError (c, d), 2 GB of memory for 208 bytes (e) and 1.6 GB for 82 (f) at e931057."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert decode(file.read_bytes(), file.name).ndim == 3
    except UnreadableImage as error:
        assert str(error).startswith(file.name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
