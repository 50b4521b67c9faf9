"""Read TensorFlow's checkpoints (version 2: an index and data files, as in a SavedModel) without TensorFlow.

The index is a LevelDB table, which TensorFlow writes uncompressed: blocks of sorted keys, each sharing a prefix with the
one before it, to small protocol buffers that say where a tensor lies. In checkpoints of objects (TensorFlow 2) the keys are
paths through the objects; the variables' own names stand in a protocol buffer among the tensors.
"""

import pathlib
import struct
from collections.abc import Iterator

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from cp2_jax.convert.containers.values import Refused

_TABLE_MAGIC = 0xDB4775248B80FB57
_STRING = 7
_DTYPES = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    9: np.int64,
    10: np.bool_,
    14: ml_dtypes.bfloat16,
    17: np.uint16,
    19: np.float16,
    22: np.uint32,
    23: np.uint64,
}
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def find_index(path: pathlib.Path) -> pathlib.Path | None:
    """Return the index file if `path` is a SavedModel, a folder with one checkpoint, a prefix, or one of the files.

    Raises:
      Refused: a folder with several checkpoints.
    """
    if path.is_dir():
        found = [path / "variables" / "variables.index", *sorted(path.glob("*.index"))]
        found = [index for index in found if index.is_file()]
        if len(found) > 1 and found[0].parent == path:
            raise Refused(f"a folder with {len(found)} TensorFlow checkpoints; name one ({found[0].name})")
        return found[0] if found else None
    stem, dot, _ = str(path).rpartition(".data-0")
    beside = path.suffix in (".index", ".meta")
    index = path.with_suffix(".index") if beside else pathlib.Path(f"{stem if dot else path}.index")
    return index if index.is_file() else None


def read(index: pathlib.Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Return the tensors by the variables' names (text variables left out).

    Args:
      index: the checkpoint's `.index` file, beside its data files.

    Raises:
      Refused, or what parsing raises: the file is damaged.
      OSError: a data file is missing.
    """
    entries = {}
    shards = 1
    for key, value in _table(index.read_bytes()):
        fields = dict(_fields(value))
        if not key:
            shards = fields.get(1, 1)
        else:
            entries[key.decode()] = value
    open_shard: dict[int, np.ndarray] = {}

    def contents(value: bytes) -> tuple[int, tuple[int, ...], np.ndarray]:
        fields = dict(_fields(value))
        if 7 in fields:
            raise Refused("a TensorFlow checkpoint of sliced variables; save it again on one machine")
        shape = tuple(dict(_fields(size)).get(1, 0) for number, size in _fields(fields.get(2, b"")) if number == 2)
        shard, offset, size = (fields.get(n, 0) for n in (3, 4, 5))
        if shard not in open_shard:
            data = index.with_name(f"{index.name[: -len('.index')]}.data-{shard:05d}-of-{shards:05d}")
            open_shard[shard] = np.memmap(data, np.uint8, "r") if data.stat().st_size else np.zeros(0, np.uint8)
        found = open_shard[shard][offset : offset + size]
        if len(found) != size:
            raise Refused("truncated: a tensor reaches beyond the end of its data file")
        return fields.get(1, 0), shape, found

    tensors = {}
    for key, value in entries.items():
        kind, shape, found = contents(value)
        if kind == _STRING:
            continue
        if kind not in _DTYPES:
            raise Refused(f"{key} has TensorFlow dtype {kind}, which is not read")
        dtype = np.dtype(_DTYPES[kind])
        if len(found) != dtype.itemsize * int(np.prod(shape, dtype=object)):
            raise Refused(f"{key}: shape {shape} does not fit its {len(found)} bytes")
        tensors[key] = np.frombuffer(found, dtype).reshape(shape)
    if _GRAPH in entries:
        names = _names(contents(entries[_GRAPH])[2].tobytes())
        tensors = {names.get(key, key): tensor for key, tensor in tensors.items()}
    return tensors


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(data) < 48 or struct.unpack("<Q", data[-8:])[0] != _TABLE_MAGIC:
        raise Refused("not the index of a TensorFlow checkpoint, or truncated")
    position = 0
    footer = data[-48:-8]
    handle = []
    while len(handle) < 4:
        number, position = _varint(footer, position)
        handle.append(number)
    for _, value in _block(data, *handle[2:]):
        offset, position = _varint(value, 0)
        size, _ = _varint(value, position)
        yield from _block(data, offset, size)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block = data[offset : offset + size + 1]
    if len(block) != size + 1 or block[-1] != 0:
        raise Refused("a TensorFlow index that is truncated or compressed")
    restarts = struct.unpack_from("<I", block, size - 4)[0]
    end, position, key = size - 4 * (restarts + 1), 0, b""
    while position < end:
        shared, position = _varint(block, position)
        fresh, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + fresh]
        position += fresh
        yield key, block[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[position]
        number |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return number, position
        if shift > 63:
            raise Refused("a damaged TensorFlow checkpoint (a number without end)")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a protocol buffer."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, position = message[position : position + width], position + width
        elif kind == 2:
            length, position = _varint(message, position)
            value, position = message[position : position + length], position + length
        else:
            raise Refused("a damaged TensorFlow checkpoint (unknown kind of field)")
        yield tag >> 3, value


def _names(stored: bytes) -> dict[str, str]:
    """Return {checkpoint key: variable name} from a stored TrackableObjectGraph."""
    length, position = _varint(stored, 0)
    graph = stored[position + 4 : position + 4 + length]  # a checksum of the length lies between
    names = {}
    for node in (value for number, value in _fields(graph) if number == 1):
        for attribute in (dict(_fields(value)) for number, value in _fields(node) if number == 2):
            full_name, checkpoint_key = (attribute.get(n, b"").decode() for n in (2, 3))
            if full_name and checkpoint_key:
                names[checkpoint_key] = full_name
    return names
