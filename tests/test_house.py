"""The house's rules, held by reading the source: who may import whom, sizes, docstrings, comments that silence a tool."""

import ast
import functools
import re

import pytest
from helpers import house
from helpers.paths import ROOT

# The rooms of the package from the lowest to the highest, and what each may import besides itself. Every name stands in a
# line above, so that imports only ever go down. A new room is written here and in its `__init__`.
LAYERS = {
    "lines": (),
    "options": (),
    "config_files": ("options",),
    "paths": ("options",),
    "pictures": ("options", "paths"),
    "models": ("options",),
    "runs": ("lines", "options", "paths", "pictures"),
    "augment": ("options", "models.inputs", "runs.rngs"),
    "data": ("lines", "options", "paths", "pictures", "runs.progress"),
    "convert": ("lines", "options", "paths", "models", "runs.checkpoints"),
    "pretraining": ("options", "paths", "pictures", "models", "runs", "augment", "data", "convert"),
    "segmentation": ("options", "paths", "pictures", "models", "runs", "data", "convert"),
    "features": ("options", "models", "runs", "convert", "pretraining"),
    "planning": ("lines", "options", "models", "runs", "pretraining", "segmentation"),
    "reproduce": ("options", "config_files", "paths", "pictures", "models", "runs", "augment", "data", "convert"),
}
LAYERS["reproduce"] += ("pretraining", "segmentation")
# What users call: from Python, and from a shell. Both may import all that is below.
LAYERS["interface"] = tuple(LAYERS)
LAYERS["cli"] = tuple(LAYERS)
LAYERS["__main__"] = ("cli",)

# Libraries that a room does without: the data pipeline runs in processes that must not touch a device, containers are
# read without the networks that their arrays belong to, and nothing below the command line reads flags.
WITHOUT = {
    "cp2_jax": ("absl.flags", "absl.app", "configs", "scripts", "tests", "benchmarks", "tensorflow", "torch"),
    "cp2_jax.options": ("jax", "flax", "optax"),
    "cp2_jax.paths": ("jax", "flax", "optax", "orbax"),
    "cp2_jax.data": ("jax", "flax", "optax", "orbax", "clu"),
    "cp2_jax.convert.containers": ("jax", "flax", "optax", "orbax", "pickle"),
    "cp2_jax.models": ("optax", "orbax", "grain", "clu"),
}

LONGEST_FILE, LONGEST_FUNCTION = 330, 60
SILENCERS = 5


@functools.cache
def modules(package="cp2_jax"):
    return house.read(ROOT, package)


def everything():
    return [m for package in ("cp2_jax", "configs", "scripts", "benchmarks", "tests") for m in modules(package)]


def test_imports_go_down():
    assert house.climbs(modules(), LAYERS, "cp2_jax") == []


def test_layers_are_in_order():
    """What a room may import stands above it."""
    seen = []
    for room, below in LAYERS.items():
        assert {name.split(".")[0] for name in below} <= set(seen), room
        seen.append(room)


def test_no_circle():
    """Also within a room, and with imports inside functions."""
    assert house.cycle(modules()) == []


@pytest.mark.parametrize("room", [room for room in LAYERS if (ROOT / "cp2_jax" / room).is_dir()])
def test_rooms_say_what_they_import(room):
    """The `__init__` of a folder has one sentence "May import `…`, `…`" that names what the list above does."""
    (said,) = [m for m in modules() if m.name == f"cp2_jax.{room}"]
    assert sorted(house.may_import(said)) == sorted(LAYERS[room])


@pytest.mark.parametrize("room", WITHOUT)
def test_rooms_do_without(room):
    inside = [m for m in modules() if house.within(m.name, room)]
    assert inside
    banned = [
        f"{m.path}:{line}: {name}"
        for m in inside
        for line, name in house.imports(m, {"absl.flags", "absl.app"})
        if any(house.within(name, other) for other in WITHOUT[room])
        and not (name == "absl.flags" and m.name.split(".")[1:2] in (["interface"], ["cli"]))
    ]
    assert banned == []


def test_configs_are_plain_values():
    """A config imports other configs and nothing that computes."""
    allowed = ("ml_collections", "collections.abc", "cp2_jax.configs", "cp2_jax.options")
    allowed += ("cp2_jax.data.demo", "cp2_jax.models", "cp2_jax.reproduce.study")
    allowed += ("cp2_jax.reproduce.quick_tuning",)
    known = {f"cp2_jax.{m.name}" for m in modules("configs")} | {"cp2_jax.data.demo", "cp2_jax.reproduce.study"}
    found = [(m.name, name) for m in modules("configs") for _, name in house.imports(m, known)]
    assert found
    assert [pair for pair in found if not any(house.within(pair[1], other) for other in allowed)] == []


def test_no_test_imports_another():
    known = {m.name for m in modules("tests")}
    found = [
        f"{m.path}:{line}: {name}"
        for m in modules("tests")
        for line, name in house.imports(m, known)
        if name.split(".")[-1].startswith("test_")
    ]
    assert found == []


def test_files_are_short():
    lengths = {str(m.path.relative_to(ROOT)): len(m.path.read_text().splitlines()) for m in everything()}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_functions_are_short():
    long = {
        name: house.length(function)
        for m in everything()
        for name, function, _ in house.functions(m)
        if house.length(function) > LONGEST_FUNCTION
    }
    assert long == {}


def test_errors_are_documented():
    """Public functions name in their docstring (or the class does) what their own body raises."""
    assert [name for m in modules() for name in house.undocumented_errors(m)[0]] == []
    assert sum(house.undocumented_errors(m)[1] for m in modules()) > 50


def test_arrays_have_shapes():
    """Public functions of arrays write shapes, which tests check with beartype, or say them in words."""
    assert [name for m in modules() for name in house.shapeless(m)[0]] == []
    assert sum(house.shapeless(m)[1] for m in modules()) > 80


def test_text_is_utf8_whatever_the_locale():
    """A file of text says its encoding: in a locale of 8 bits, names of classes would be written that nobody can read."""
    found = [
        f"{m.path}:{node.lineno}"
        for m in modules("cp2_jax")
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text")
        if '"utf-8"' not in ast.unparse(node).replace("'", '"')
    ]
    assert found == []


def test_few_comments_silence_a_tool():
    found = {str(m.path.relative_to(ROOT)): n for m in everything() if (n := house.silencers(m.path.read_text()))}
    print("comments that silence a tool:", sum(found.values()))
    assert sum(found.values()) <= SILENCERS, found


def test_pages_have_one_line_for_each_paragraph():
    pages = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    assert len(pages) > 10
    assert {path.name: lines[0] for path in pages if (lines := house.hard_wraps(path.read_text()))} == {}


# That the readers above can find something.

TOY = {
    "toy.low": "import os\nfrom toy import base\n",
    "toy.base": "def f():\n    from toy.high import thing\n",
    "toy.high": "import toy.low\nimport toy.low.part\n",
    "toy.stray": "",
}


def test_a_climbing_import_is_found():
    toy = [house.Module.parse(name, source) for name, source in TOY.items()]
    found = house.climbs(toy, {"base": (), "low": ("base",), "high": ("low",)}, "toy")
    assert found == [
        "none.py:2: base may not import toy.high",  # also inside a function
        "none.py: belongs to no room in the list of layers",
    ]
    assert house.climbs(toy[:1], {"base": (), "low": ()}, "toy") == ["none.py:2: low may not import toy"]
    assert house.cycle(toy) == ["toy.low", "toy.base", "toy.high", "toy.low"]
    assert house.cycle(toy[:1]) == []


def test_an_undocumented_error_is_found():
    source = '''
def bare(): raise ValueError("no")
def said():
    """Raises: ValueError: always."""
    raise ValueError("no")
def passes_on(error): raise error
def _private(): raise KeyError
class A:
    """Raises OSError."""
    def method(self): raise OSError
    def other(self):
        def inner(): raise KeyError
        raise errors.FormatError("no")
'''
    missing, count = house.undocumented_errors(house.Module.parse("m", source))
    assert (missing, count) == (["m.bare", "m.A.other"], 4)


def test_a_missing_shape_is_found():
    source = '''
def bare(x: np.ndarray) -> int: ...
def annotated(x: Float[np.ndarray, "h w"]) -> list[UInt8[Array, "n"]]: ...
def says(x: dict[str, np.ndarray]):
    """x: (h, w, 3) images."""
def quoted() -> "Array": ...
def maybe(x: None | jax.Array = None, *, y=1):
    """Return (sometimes)."""
def none(x: int): ...
'''
    missing, count = house.shapeless(house.Module.parse("m", source))
    assert (missing, count) == (["m.bare", "m.quoted", "m.maybe"], 5)


def test_a_silencing_comment_is_found():
    lines = ["import os  # no" + "qa: F401", "x = 1  # fmt: " + "skip", "y = 'no" + "qa'", "#: type: " + "ignore", "z = 0"]
    assert house.silencers("\n".join(lines)) == 3


def test_a_hard_wrap_is_found():
    page = "# Title\nA line\nthat goes on.\n\n- an item\n  of two lines\n- another\n\n| a |\n|---|\n```\none\ntwo\n```\n"
    assert house.hard_wraps(page) == ["that goes on.", "  of two lines"]


def test_length_counts_from_def_to_the_end():
    ((_, function, _),) = house.functions(house.Module.parse("m", "@a\ndef f(\n  x,\n):\n  pass\n"))
    assert house.length(function) == 4


def test_what_a_room_says_is_read():
    module = house.Module.parse("m", '"""A room. `x` enters.\n\nMay import `a`, `b.c`\nand nothing else; never `d`.\n"""')
    assert house.may_import(module) == ["a", "b.c"]
    assert re.search("no sentence", str(pytest.raises(ValueError, house.may_import, house.Module.parse("m", "")).value))
