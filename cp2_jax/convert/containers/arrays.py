"""Arrays out of pickles: what stands in for NumPy's and PyTorch's rebuilding functions. Neither is called."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from cp2_jax.convert.containers.pickles import Machine
from cp2_jax.convert.containers.values import Name, Refused

_TORCH_DTYPES = {
    "float64": ("Double", np.float64),
    "float32": ("Float", np.float32),
    "float16": ("Half", np.float16),
    "bfloat16": ("BFloat16", ml_dtypes.bfloat16),
    "int64": ("Long", np.int64),
    "int32": ("Int", np.int32),
    "int16": ("Short", np.int16),
    "int8": ("Char", np.int8),
    "uint8": ("Byte", np.uint8),
    "bool": ("Bool", np.bool_),
    "complex64": ("ComplexFloat", np.complex64),
    "complex128": ("ComplexDouble", np.complex128),
    "uint16": ("", np.uint16),
    "uint32": ("", np.uint32),
    "uint64": ("", np.uint64),
    "float8_e4m3fn": ("", ml_dtypes.float8_e4m3fn),
    "float8_e5m2": ("", ml_dtypes.float8_e5m2),
}


@dataclasses.dataclass(frozen=True)
class StorageType:
    """The class of a PyTorch storage: its dtype, or None for bytes."""

    dtype: np.dtype | None


@dataclasses.dataclass
class Storage:
    """One run of memory in a PyTorch file; `data` may arrive after the pickle that mentions it."""

    dtype: np.dtype | None
    count: int
    data: memoryview | None = None
    swapped: bool = False  # the file's byte order is not this machine's

    @property
    def nbytes(self) -> int:
        return self.count * (self.dtype.itemsize if self.dtype else 1)


@dataclasses.dataclass
class Tensor:
    """A PyTorch tensor: a view of a storage, checked to lie inside it. Nothing is copied until `numpy()`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def numpy(self) -> Shaped[np.ndarray, "*shape"]:
        """Return the tensor as a view of the file's bytes, copied only where the byte order is another."""
        flat = np.frombuffer(self.storage.data, self.dtype)
        if self.storage.swapped:
            flat = flat.byteswap()
        strides = tuple(s * self.dtype.itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)


class Array:
    """A NumPy array that a pickle makes first and fills afterwards.

    Attributes:
      shape, dtype: as NumPy's. objects: the elements of an array of objects, else None.
    """

    def __init__(self):
        self.shape, self.dtype, self.objects, self._array = (), None, None, None

    def set_state(self, machine: Machine, state: Any) -> None:
        """Fill the array as NumPy's `__setstate__` does.

        Args:
          machine: whose budget is spent. state: ([version,] shape, dtype, whether in Fortran's order, bytes or objects).

        Raises:
          Refused: the state is of another kind.
        """
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise Refused("a NumPy array with an unknown kind of state")
        shape, dtype, fortran, data = state[-4:]
        self.fill(machine, shape, dtype, fortran, data)

    def fill(self, machine: Machine, shape: Any, dtype: Any, fortran: Any, data: Any) -> "Array":
        """Give the array its contents, of any shape, and return it.

        Args:
          machine: whose budget is spent. shape, dtype: from the file, checked here. fortran: order of the elements.
          data: bytes, text written by Python 2, or the list of an array of objects.

        Raises:
          Refused: shape, dtype and data do not go together.
        """
        self.shape = sizes(shape)
        self.dtype = dtype.resolve() if isinstance(dtype, DType) else None
        count = math.prod(self.shape)
        if self.dtype is None:
            raise Refused("a NumPy array without a dtype")
        if self.dtype.kind == "O":
            if not isinstance(data, list) or len(data) != count:
                raise Refused(f"an array of objects of shape {self.shape} that lists another number of them")
            self.objects = data
            return self
        if isinstance(data, str):  # written by Python 2
            machine.spend(len(data))
            data = data.encode("latin1")
        if not isinstance(data, bytes | bytearray) or len(data) != count * self.dtype.itemsize:
            raise Refused(f"an array of shape {str(self.shape)[:80]} and {self.dtype} with another number of bytes")
        array = np.frombuffer(data, self.dtype).reshape(self.shape, order="F" if fortran else "C")
        self._array = array if self.dtype.isnative else array.astype(self.dtype.newbyteorder("="))
        self.dtype = self._array.dtype
        return self

    def numpy(self) -> Shaped[np.ndarray, "*shape"]:
        """Return the array.

        Raises:
          Refused: it was never filled.
        """
        if self._array is None:
            raise Refused("an array without contents")
        return self._array


class DType:
    """A NumPy dtype in the making: code, then byte order."""

    def __init__(self, code: str | np.dtype):
        self.code, self.order = code, "="

    def set_state(self, machine: Machine, state: Any) -> None:
        """Take the byte order, as NumPy's `__setstate__` does.

        Raises:
          Refused: the dtype has fields, or is otherwise more than plain numbers or text.
        """
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "=") or state[3]:
            raise Refused("a NumPy dtype of an unknown kind (only plain numbers and text are read)")
        self.order = state[1]

    def resolve(self) -> np.dtype:
        """Return NumPy's dtype."""
        dtype = np.dtype(self.code)
        return dtype if self.order == "|" or dtype.kind == "V" else dtype.newbyteorder(self.order)


def sizes(values: Any) -> tuple[int, ...]:
    """Return a shape or strides, checked to be up to 32 integers that are not negative.

    Raises:
      Refused: for anything else.
    """
    if isinstance(values, int) and not isinstance(values, bool):
        values = (values,)
    if not isinstance(values, tuple | list) or len(values) > 32 or not all(type(v) is int for v in values):
        raise Refused("a shape that is no short tuple of integers")
    if any(v < 0 or v >= 2**62 for v in values):
        raise Refused(f"an impossible size or stride in {str(tuple(values))[:80]}")
    return tuple(values)


def torch_value(name: str) -> Any:
    """Return what one of PyTorch's names stands for if that is a dtype or the class of a storage, else None."""
    match = re.fullmatch(r"torch(?:\.cuda|\.storage)?\.(\w*?)(Storage)?", name)
    if not match:
        return None
    if match[2]:
        if match[1] == "Untyped":
            return StorageType(None)
        return next((StorageType(np.dtype(d)) for n, d in _TORCH_DTYPES.values() if n and n == match[1]), None)
    return np.dtype(_TORCH_DTYPES[match[1]][1]) if match[1] in _TORCH_DTYPES and name.count(".") == 1 else None


def _view(machine, storage, dtype, offset, shape, strides):
    if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
        raise Refused("a tensor without a storage")
    shape, strides, (offset,) = sizes(shape), sizes(strides), sizes(offset)
    if len(shape) != len(strides):
        raise Refused(f"a tensor of shape {shape} with {len(strides)} strides")
    capacity = storage.nbytes // dtype.itemsize
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if offset > capacity or (count and last >= capacity):
        raise Refused(f"a tensor of shape {str(shape)[:80]} that reaches beyond its storage of {capacity} elements")
    # A stride of zero repeats elements for nothing, so a small file can declare any size.
    machine.spend(count * dtype.itemsize)
    return Tensor(storage, dtype, offset, shape, strides)


def _tensor(machine, storage, offset, shape, strides, *_):
    if not isinstance(storage, Storage) or storage.dtype is None:
        raise Refused("a tensor without a typed storage")
    return _view(machine, storage, storage.dtype, offset, shape, strides)


def _tensor_v3(machine, storage, offset, shape, strides, requires_grad, hooks, dtype, *_):
    return _view(machine, storage, dtype, offset, shape, strides)


def _parameter(machine, tensor, *_):
    if not isinstance(tensor, Tensor):
        raise Refused("a parameter without a tensor")
    return tensor


def _of_subclass(machine, function, cls, args, state):
    return machine.call(function, args)


def _no_call(machine, *args):
    raise Refused("a class called as a function")


def _size(machine, values=()):
    return sizes(values)


def _device(machine, *_):
    return None


def _reconstruct(machine, cls, shape, code):
    if not isinstance(cls, Name) or str(cls) != "numpy.ndarray":
        raise Refused("an array of another class than numpy.ndarray")
    return Array()


def _from_buffer(machine, buffer, dtype, shape, order, *_):
    return Array().fill(machine, shape, dtype, order == "F", buffer)


def _dtype(machine, code, *_):
    if isinstance(code, Name) and str(code).startswith("ml_dtypes."):
        return DType(np.dtype(getattr(ml_dtypes, _FLOATS[code.name])))
    if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}|O8?)", code):
        raise Refused(f"the NumPy dtype {str(code)[:40]}, which no known checkpoint holds")
    return DType(code)


def _scalar(machine, dtype, data=None):
    if not isinstance(dtype, DType) or dtype.resolve().kind == "O":
        raise Refused("a NumPy scalar of an unknown kind")
    return Array().fill(machine, (), dtype, False, data).numpy()[()]


def _jax_array(machine, function, args, state, *_):
    # JAX pickles an array as the pieces of a NumPy one.
    array = machine.call(function, args)
    if not isinstance(array, Array):
        raise Refused("an array that is made of something else than a NumPy one")
    array.set_state(machine, state)
    return array


def _dill_array(machine, function, args, state, attributes=None):
    if attributes:
        raise Refused("a NumPy array of a subclass, with attributes")
    return _jax_array(machine, function, args, state)


_FLOATS = {n: n for n in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}

BUILDERS: dict[str, Callable] = {
    "numpy.ndarray": _no_call,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "dill._dill._create_array": _dill_array,
    "jax._src.array._reconstruct_array": _jax_array,
    "jax._src.device_array.reconstruct_device_array": _jax_array,
    "jax.interpreters.xla._reconstruct_device_array": _jax_array,
    **{f"ml_dtypes.{name}": _no_call for name in _FLOATS},
}

TORCH_BUILDERS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch.nn.parameter.Parameter": _no_call,
    "torch.Tensor": _no_call,
    "torch.Size": _size,
    "torch.device": _device,
}
