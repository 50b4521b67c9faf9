"""PyTorch's files, written by pickling stand-ins that call themselves what PyTorch's functions are called."""

import collections
import contextlib
import io
import pathlib
import pickle
import struct
import sys
import types
import zipfile

import numpy as np


class _Storage:
    def __init__(self, array):
        self.array = array


def fake(module, name, kind=None):
    made = type(name, (), {}) if kind is None else kind
    made.__module__, made.__qualname__, made.__name__ = module, name, name
    return made


def _rebuild(*args):
    raise AssertionError("the stand-in is only named, never called")


_STORAGE = {
    np.dtype(kind): fake("torch", f"{name}Storage")
    for kind, name in {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "u1": "Byte", "?": "Bool"}.items()
}


_REBUILD = fake("torch._utils", "_rebuild_tensor_v2", _rebuild)


@contextlib.contextmanager
def stand_ins(**modules):
    """Put modules of these names (dots written as double underscores) into sys.modules for a while."""
    made = {name.replace("__", "."): types.SimpleNamespace(**members) for name, members in modules.items()}
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _TorchPickler(pickle.Pickler):
    def __init__(self, stream, protocol=2):
        super().__init__(stream, protocol)
        self.storages: list[np.ndarray] = []

    def reducer_override(self, value):
        if type(value) is not np.ndarray:
            return NotImplemented
        strides = tuple(s // value.itemsize for s in np.ascontiguousarray(value).reshape(value.shape).strides)
        return _REBUILD, (_Storage(value), 0, value.shape, strides, False, collections.OrderedDict())

    def persistent_id(self, value):
        if not isinstance(value, _Storage):
            return None
        self.storages.append(value.array)
        return ("storage", _STORAGE[value.array.dtype], str(len(self.storages) - 1), "cpu", value.array.size)


def save_torch(path, tree, legacy=False) -> None:
    """Write what `torch.save(tree, path)` would, NumPy arrays being tensors."""
    stream = io.BytesIO()
    with stand_ins(torch={f"{t.__name__}": t for t in _STORAGE.values()}, torch___utils={"_rebuild_tensor_v2": _REBUILD}):
        pickler = _TorchPickler(stream)
        pickler.dump(tree)
    contents = [np.ascontiguousarray(a).tobytes() for a in pickler.storages]
    if legacy:
        data = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        data += stream.getvalue() + pickle.dumps([str(i) for i in range(len(contents))], 2)
        for array, raw in zip(pickler.storages, contents, strict=True):
            data += struct.pack("<q", array.size) + raw
        pathlib.Path(path).write_bytes(data)
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", b"little")
        for index, raw in enumerate(contents):
            archive.writestr(f"archive/data/{index}", raw)
        archive.writestr("archive/version", b"3\n")
