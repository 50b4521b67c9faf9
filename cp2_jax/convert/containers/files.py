"""Open a checkpoint of any known container: PyTorch's zip and older format, pickles, .npy, safetensors, TensorFlow.

What comes out is plain: dicts, lists, numbers, text, `Inert` objects, and arrays (`Tensor`, `Array`, `np.ndarray`).
"""

import io
import mmap
import pathlib
import re
import struct
import sys
import zipfile
import zlib
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from cp2_jax.convert.containers import allowlist, arrays, tensorflow_files
from cp2_jax.convert.containers.arrays import Storage, StorageType, Tensor
from cp2_jax.convert.containers.pickles import Machine
from cp2_jax.convert.containers.values import CheckpointFormatError, Refused, printable

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_KNOWN_OTHERS = [
    (0, b"\x89HDF", "an HDF5 (Keras) file; convert the checkpoint to PyTorch or safetensors first"),
    (0, b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (0, b"BZh", "compressed with bzip2; unpack it first"),
    (0, b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (257, b"ustar", "a tar archive: unpack it, or, if PyTorch before 0.1.10 wrote it, save it again with a newer one"),
    (0, b"<", "a web page, not a checkpoint; look at how it was downloaded"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch that with `git lfs pull`"),
]
_SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_BROKEN = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
    RecursionError,
    NotImplementedError,
    struct.error,
    zipfile.BadZipFile,
)


def read(path: str | pathlib.Path) -> tuple[Any, str]:
    """Return (contents, container) of a checkpoint; nothing that the file names is imported or called.

    Args:
      path: a file; for TensorFlow a SavedModel's directory, the `.index` file, or the prefix of index and data files.

    Raises:
      CheckpointFormatError: the file is missing, damaged, not a checkpoint, or asks for more than plain values.
    """
    path = pathlib.Path(path)
    try:
        return _open(path)
    except FileNotFoundError as error:
        raise CheckpointFormatError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointFormatError(f"{path}: {error.strerror or error}") from error
    except Refused as error:
        raise CheckpointFormatError(f"{path}: {printable(str(error))}") from error
    except _BROKEN as error:
        reason = printable(" ".join(str(error).split())[:160]) or type(error).__name__
        raise CheckpointFormatError(f"{path}: damaged, truncated or no checkpoint ({reason})") from error


def _open(path: pathlib.Path) -> tuple[Any, str]:
    index = tensorflow_files.find_index(path)
    if index:
        return tensorflow_files.read(index), "tensorflow"
    if path.is_dir():
        raise Refused(_directory(path))
    if path.exists() and not path.is_file():
        raise Refused("not a regular file")
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if path.stat().st_size else b""
    return _read(path, data)


def _directory(path: pathlib.Path) -> str:
    """Say what to do with a directory that is no TensorFlow SavedModel."""
    if (path / "state").is_dir() or (path / "checkpoints").is_dir() or any(path.glob("*/state")):
        return "a checkpoint of this project already: it needs no conversion"
    endings = (".safetensors", ".bin", ".pth", ".pt", ".tar", ".pkl", ".npy", ".ckpt")
    inside = sorted(entry.name for entry in path.iterdir() if entry.suffix in endings)
    if inside:
        return f"a directory; name the file in it: {', '.join(inside[:6])}"
    return "a directory, and not a TensorFlow SavedModel"


def _read(path, data):
    start = bytes(data[:512])
    if start[:4] == b"PK\x03\x04" or start[:4] == b"PK\x05\x06":
        return _read_zip(path, data), "torch zip"
    if start[:6] == b"\x93NUMPY":
        return _read_npy(data), "numpy"
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= len(data) - 8:
        return _read_safetensors(data), "safetensors"
    if start[:1] == b"\x80" or start[:1] in (b"(", b"c", b"}", b"]"):
        return _read_pickle(data)
    if start[:1] in (b"{", b"["):
        said = start[:80].decode(errors="replace")
        raise Refused(f"JSON, not a checkpoint; an error message of a server? It says {said}")
    for offset, magic, reason in _KNOWN_OTHERS:
        if start[offset : offset + len(magic)] == magic:
            raise Refused(reason)
    if not data:
        raise Refused("an empty file")
    raise Refused(f"not a checkpoint: it starts with {start[:8].hex(' ')}, which no known format does")


def _budget(data) -> int:
    # What a file's calls may copy, and its tensors may cover: several names for one tensor are usual, thousands are not.
    return 8 * len(data) + (64 << 20)


class _Storages:
    """The storages of one PyTorch file, by key."""

    def __init__(self):
        self.by_key: dict[str, Storage] = {}

    def persistent(self, identity: Any) -> Storage:
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            kind = identity[0] if isinstance(identity, tuple) and identity else identity
            raise Refused(f"a persistent id of the kind {str(kind)[:40]!r}: a whole module, not a state_dict")
        _, kind, key, _, count = identity[:5]
        if not isinstance(kind, StorageType) or not isinstance(key, str | int) or identity[5:] not in ((), (None,)):
            raise Refused("a storage of an unknown kind")
        (count,) = arrays.sizes(count)
        known = self.by_key.setdefault(str(key), Storage(kind.dtype, count))
        if known.dtype != kind.dtype or known.count != count:
            raise Refused(f"storage {str(key)[:40]} described twice, differently")
        return known


def _plain(stream, budget):
    """Return a machine for pickles of Python's and NumPy's values."""
    return Machine(stream, budget, allowlist.BUILDERS | arrays.BUILDERS, allowlist.is_inert)


def _torch(stream, budget, storages):
    """Return a machine for pickles that PyTorch may have written."""
    builders = allowlist.BUILDERS | arrays.BUILDERS | arrays.TORCH_BUILDERS
    return Machine(stream, budget, builders, allowlist.is_inert, arrays.torch_value, storages.persistent)


def _read_zip(path, data):
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise Refused("a zip archive with two entries of one name")
    if any(name.startswith("/") or ".." in name.split("/") for name in names):
        raise Refused("a zip archive with entries that point out of it")
    pickled = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise Refused("a zip archive that torch.save did not write (it has no single data.pkl)")
    root = pickled[0][: -len("data.pkl")]
    if any(name.startswith(root + "code/") for name in names):
        raise Refused("a TorchScript archive, which holds code; save its state_dict() instead")
    by_name = {entry.filename: entry for entry in entries}
    order = root + "byteorder"
    swapped = order in by_name and bytes(_entry(data, by_name[order])).decode() != sys.byteorder
    storages = _Storages()
    tree = _torch(io.BytesIO(_entry(data, by_name[pickled[0]])), _budget(data), storages).run()
    for key, storage in storages.by_key.items():
        entry = by_name.get(f"{root}data/{key}")
        if entry is None:
            raise Refused(f"the contents of tensor storage {key[:40]} are missing")
        storage.data, storage.swapped = _entry(data, entry), swapped
        if len(storage.data) != storage.nbytes:
            raise Refused(f"storage {key[:40]} declares {storage.nbytes} bytes, the file holds {len(storage.data)}")
    return tree


def _entry(data, entry):
    """Return the bytes of one zip entry, in place."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise Refused(f"the zip entry {entry.filename[:60]} is compressed, as torch.save never does; repack it stored")
    header = bytes(data[entry.header_offset : entry.header_offset + 30])
    if header[:4] != b"PK\x03\x04" or entry.flag_bits & 1:
        raise Refused(f"the zip entry {entry.filename[:60]} is damaged or encrypted")
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    found = data[start : start + entry.file_size]
    if len(found) != entry.file_size:
        raise Refused(f"truncated: {entry.filename[:60]} reaches beyond the end of the file")
    # PyTorch can be told not to compute checksums; it then writes 0.
    if entry.CRC and zlib.crc32(found) != entry.CRC:
        raise Refused(f"damaged: the checksum of {entry.filename[:60]} is wrong")
    return found


def _read_pickle(data):
    stream, budget, storages = io.BytesIO(data), _budget(data), _Storages()
    first = _torch(stream, budget, storages).run()
    if first != _LEGACY_MAGIC or type(first) is not int:
        if storages.by_key:
            raise Refused("tensors without contents")
        return first, "pickle"
    version, system = (_plain(stream, budget).run() for _ in range(2))
    if version != 1001:
        raise Refused(f"PyTorch serialisation protocol {str(version)[:20]}; 1001 is the one that exists")
    swapped = (system.get("little_endian", True)) != (sys.byteorder == "little")
    tree = _torch(stream, budget, storages).run()
    keys = _plain(stream, budget).run()
    if sorted(map(str, keys)) != sorted(storages.by_key):
        raise Refused("its list of storages is not the one that its tensors use")
    position = stream.tell()
    for key in keys:
        storage = storages.by_key[str(key)]
        (count,) = struct.unpack_from(">q" if swapped else "<q", data, position)
        if count != storage.count:
            raise Refused(f"storage {str(key)[:40]} declares {storage.count} elements, the file holds {count}")
        storage.data, storage.swapped = data[position + 8 : position + 8 + storage.nbytes], swapped
        position += 8 + storage.nbytes
        if len(storage.data) != storage.nbytes:
            raise Refused(f"truncated: storage {str(key)[:40]} reaches beyond the end of the file")
    return tree, "torch legacy"


def _read_npy(data):
    # NumPy parses the header as Python; we only need to know that it is an array of objects.
    width = 2 if data[6] == 1 else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if not re.search(rb"""['"]descr['"]\s*:\s*['"]\|?O8?['"]""", bytes(data[8 + width : min(start, 4096)])):
        raise Refused("a .npy file with one plain array: no checkpoint, which would be a dict of named arrays")
    array = _plain(io.BytesIO(data[start:]), _budget(data)).run()
    if not isinstance(array, arrays.Array) or array.objects is None or len(array.objects) != 1:
        raise Refused("a .npy file that holds something other than one dict")
    return array.objects[0]


def _read_safetensors(data):
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(bytes(data))
    except SafetensorError as error:
        raise Refused(f"not readable as safetensors ({error})") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _SAFETENSORS:
            raise Refused(f"{name} is {entry['dtype']}, which is not read")
        tensors[name] = np.frombuffer(entry["data"], _SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def is_array(value: Any) -> bool:
    """Say whether a value from `read` is an array; it then has `shape` and `dtype`."""
    return isinstance(value, Tensor | np.ndarray) or (isinstance(value, arrays.Array) and value.objects is None)


def to_numpy(value: Any) -> Shaped[np.ndarray, "*shape"]:
    """Return an array from `read` as NumPy's."""
    return value if isinstance(value, np.ndarray) else value.numpy()
