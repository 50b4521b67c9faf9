"""Hostile files: none runs anything, none takes much memory or time, each gives one line that names the file."""

import io
import os
import pickle
import re
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers.checkpoints import RESNET, save_torch

from cp2_jax.convert.containers import files
from cp2_jax.convert.containers.values import CheckpointFormatError
from cp2_jax.convert.importing import import_checkpoint

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def storage(count: int) -> bytes:
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(count) + b"tQ"


def tensor(count: int, offset: int, shape: list[int], strides: list[int]) -> bytes:
    sizes = b"".join(b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides))
    return b"\x80\x02}" + text("conv1.weight") + REBUILD + b"(" + storage(count) + number(offset) + sizes + b"\x89}tRs."


def touch(canary) -> bytes:
    return f"S'touch {canary}'\n".encode()


class Reduced:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def executing(canary) -> dict[str, bytes]:
    """Pickles that would make the canary file if they were run by Python's `pickle`."""
    code = f"__import__('os').system('touch {canary}')"
    return {
        "os.system": b"cos\nsystem\n(" + touch(canary) + b"tR.",
        "posix.system, by text from the stack": pickle.dumps(Reduced(os.system, f"touch {canary}"), 4),
        "eval": pickle.dumps(Reduced(eval, code), 2),
        "exec in a dict among tensors": pickle.dumps({"state_dict": {"conv1.weight": Reduced(exec, code)}}, 2),
        "nested reduce": pickle.dumps(Reduced(getattr, Reduced(__import__, "os"), "system"), 2)[:-1]
        + touch(canary)
        + b"\x85R.",
        "reduce inside a tensor's arguments": b"\x80\x02" + REBUILD + b"(cos\nsystem\n(" + touch(canary) + b"tRtR.",
        "INST": b"(" + touch(canary) + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + touch(canary) + b"o.",
        "NEWOBJ of subprocess.Popen": b"\x80\x02csubprocess\nPopen\n(" + touch(canary) + b"t\x81.",
        "getattr of a listed class": b"\x80\x02cbuiltins\ngetattr\ncargparse\nNamespace\n" + text("__init__") + b"\x86R"
        b"cbuiltins\neval\n" + text(code) + b"\x85R.",
        "setattr by BUILD": b"\x80\x02" + REBUILD + b"}" + text("__code__") + b"cbuiltins\neval\nsb.",
        "dill's function": b"\x80\x02cdill._dill\n_create_function\n(" + text(code) + b"tR.",
        "operator.attrgetter": b"\x80\x02coperator\nattrgetter\n" + text("system") + b"\x85Rcos\n__dict__\n\x85R.",
        "runpy": b"\x80\x02crunpy\n_run_code\n(" + text(code) + b"}tR.",
        "torch's own eval": b"\x80\x02ctorch.jit.unsupported_tensor_ops\nexecWrapper\n(" + text(code) + b"}tR.",
        "an extension code": b"\x80\x02\x82\x01" + touch(canary) + b"\x85R.",
        "numpy's runstring": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n" + text(code) + b"}\x86R.",
        "name with dots": b"\x80\x04\x8c\x08builtins\x8c\x0deval.__call__\x93" + text(code) + b"\x85R.",
    }


def breaking() -> dict[str, bytes]:
    """Pickles that would take all memory or time, or reach beyond their storage."""
    laughs = (
        b"\x80\x02]" + b"".join(b"q" + bytes([i]) + b"]" + b"(" + (b"h" + bytes([i])) * 50 + b"e" for i in range(40)) + b"."
    )
    keys = b"\x80\x02}" + b")" + b"".join(b"q" + bytes([i]) + (b"h" + bytes([i])) + b"\x86" for i in range(200)) + b"Ns."
    million = b"\x80\x02(" + b"N" * 200_000 + b"lq\x00"
    long = b"\x80\x02" + text("a" * 1_000_000) + b"q\x00"
    return {
        "huge storage": tensor(2**60, 0, [2**60], [1]),
        "storage beyond the file": tensor(2**60, 2**59, [1], [1]),
        "huge shape by stride 0": tensor(4, 0, [2**40], [0]),
        "huge product of sizes": tensor(4, 0, [2**31] * 30, [0] * 30),
        "beyond its storage": tensor(4, 0, [5], [1]),
        "offset beyond its storage": tensor(4, 9, [1], [1]),
        "negative stride": tensor(4, 3, [4], [-1]),
        "negative offset": tensor(4, -1, [1], [1]),
        "negative size": tensor(4, 0, [-1], [1]),
        "a thousand axes": tensor(4, 0, [1] * 1000, [1] * 1000),
        "billion laughs": laughs,
        "keys that take forever to hash": keys,
        "copies of a long text": long + (b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R0") * 999 + b"N.",
        "sets of a long list": million + b"(" + b"c__builtin__\nset\n(h\x00tR" * 200 + b"t.",
        "memo far away": b"\x80\x02Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.",
        "an integer of a megabyte": b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20) + b".",
        "text longer than the file": b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"abc.",
        "a negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
        "pops of an empty stack": b"\x80\x020000000.",
        "marks without end": b"\x80\x02" + b"(" * 100_000 + b".",
        "persistent id of a module": b"\x80\x02(" + text("module") + b"ctorch\nFloatStorage\n" + text("import os") + b"tQ.",
        "persistent id of text": b"\x80\x02Pmodule\n.",
        "no end": b"\x80\x02NNN",
        "array with too few bytes": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01J\xff\xff\xff\x7f\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x04abcdtb.",
    }


def write(path, payload: bytes, container: str) -> None:
    if container == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
            archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
            archive.writestr("archive/version", b"3\n")
    elif container == "legacy":
        start = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(start + payload + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + b"\0" * 16)
    elif container == "npy":
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
        path.write_bytes(stream.getvalue() + payload)
    else:
        path.write_bytes(payload)


REASONS = {
    "huge storage": "a bomb",
    "storage beyond the file": "bytes, the file holds|elements, the file holds|without contents",
    "huge shape by stride 0": "a bomb",
    "huge product of sizes": "a bomb",
    "beyond its storage": "beyond its storage of 4",
    "offset beyond its storage": "beyond its storage of 4",
    "negative stride": "impossible size or stride",
    "negative offset": "impossible size or stride",
    "negative size": "impossible size or stride",
    "a thousand axes": "no short tuple",
    "billion laughs": "holds no named tensors|list of storages",
    "keys that take forever to hash": "as a dictionary key",
    "copies of a long text": "a bomb",
    "sets of a long list": "a bomb",
    "memo far away": "damaged",
    "an integer of a megabyte": "an integer of",
    "text longer than the file": "expected 1125899906842624 bytes",
    "a negative length": "damaged",
    "pops of an empty stack": "damaged",
    "marks without end": "damaged",
    "persistent id of a module": "kind 'module'",
    "persistent id of text": "kind 'module'",
    "no end": "damaged",
    "array with too few bytes": "another number of bytes",
}


def refused(path) -> str:
    started = time.process_time()
    with pytest.raises(CheckpointFormatError) as caught:
        import_checkpoint(path)
    assert time.process_time() - started < 20
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ") and len(message) < 600, message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("container", ["zip", "legacy", "npy", "pickle"])
@pytest.mark.parametrize("name", executing(""))
def test_nothing_is_executed(tmp_path, name, container):
    canary = tmp_path / "canary"
    payload = executing(canary)[name]
    write(tmp_path / "x.pth", payload, container)
    refused(tmp_path / "x.pth")
    assert not canary.exists()


def test_the_canary_would_sing(tmp_path):
    # The files above do harm if Python's own pickle reads them; else the test above shows nothing.
    canary = tmp_path / "canary"
    for name in ("os.system", "posix.system, by text from the stack", "eval", "nested reduce", "INST", "OBJ"):
        pickle.loads(executing(canary)[name])
        assert canary.exists(), name
        canary.unlink()


@pytest.mark.parametrize("name", ["os.system", "eval", "nested reduce", "NEWOBJ of subprocess.Popen", "dill's function"])
def test_what_is_refused_is_named(tmp_path, name):
    asked = {
        "os.system": "os.system",
        "eval": "builtins.eval",
        "nested reduce": "builtins.__import__",
        "NEWOBJ of subprocess.Popen": "subprocess.Popen",
        "dill's function": "dill._dill._create_function",
    }
    write(tmp_path / "x.pth", executing("canary")[name], "zip")
    assert asked[name] in refused(tmp_path / "x.pth")


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", breaking())
def test_bombs_do_not_go_off(tmp_path, name, container):
    write(tmp_path / "x.pth", breaking()[name], container)
    tracemalloc.start()
    assert re.search(REASONS[name], refused(tmp_path / "x.pth"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 << 20


def test_too_many_opcodes(tmp_path):
    write(tmp_path / "x.pkl", b"\x80\x02" + b"]0" * 3_000_000 + b".", "pickle")
    assert "opcodes" in refused(tmp_path / "x.pkl")


def zipped(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)


good = tensor(4, 0, [4], [1])
four = np.arange(4, dtype=np.float32).tobytes()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("a/data.pkl", good), ("a/data/0", four), ("../../etc/x", b"")], "point out"),
        ([("a/data.pkl", good), ("a/data/0", four), ("/etc/x", b"")], "point out"),
        ([("a/data.pkl", good), ("a/data/0", four), ("a/code/x.py", b"import os")], "code"),
        ([("a/data.pkl", good), ("a/data/0", four), ("a/data/0", four)], "two entries"),
        ([("a/data.pkl", good), ("b/data.pkl", good), ("a/data/0", four)], "single data.pkl"),
        ([("a/data.pkl", good)], "missing"),
        ([("a/data.pkl", good), ("a/data/0", four[:8])], "declares 16 bytes"),
        ([("readme", b"")], "data.pkl"),
        ([("a/data.pkl", b""), ("a/data/0", four)], "truncated"),
    ],
)
def test_zip_archives_that_are_wrong(tmp_path, entries, message):
    zipped(tmp_path / "x.pth", entries)
    assert message in refused(tmp_path / "x.pth")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pth"]


def test_the_good_archive_is_good(tmp_path):
    zipped(tmp_path / "x.pth", [("a/data.pkl", good), ("a/data/0", four)])
    tree, _ = files.read(tmp_path / "x.pth")
    np.testing.assert_array_equal(files.to_numpy(tree["conv1.weight"]), np.arange(4))


def test_compressed_zip_bomb(tmp_path):
    zipped(tmp_path / "x.pth", [("a/data.pkl", b"\x80\x02" + b"]" * 50_000_000)], zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(tmp_path / "x.pth")


def test_safetensors_that_lie(tmp_path):
    path = tmp_path / "x.safetensors"
    for header in (
        b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}',
        b'{"a":' + b"[" * 10_000,
        b"{}}" * 10,
    ):
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
        refused(path)


def test_a_bomb_among_good_tensors_is_still_refused(tmp_path):
    # The right names with other contents: what is loaded is checked by shape, and the rest is not looked at.
    state = dict(RESNET) | {"conv1.weight": np.ones((2, 3, 5, 5), np.float32)}
    save_torch(tmp_path / "x.pth", state)
    with pytest.raises(CheckpointFormatError, match=r"conv1.weight is \(2, 3, 5, 5\)"):
        import_checkpoint(tmp_path / "x.pth")
