"""Part of a JPEG by libjpeg-turbo's TurboJPEG 3 interface, called directly: no Python binding offers it.

Optional: the pixels are those of a whole decode, so that a machine without the library computes the same, slower. It is
looked for on the system (libturbojpeg 3 or newer) and in the wheel `turbojpeg`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.metadata
import threading

import numpy as np
from jaxtyping import UInt8

_DECOMPRESS, _RGBX = 1, 2  # TJINIT_DECOMPRESS, TJPF_RGBX
_SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLORSPACE = 4, 5, 6, 7, 8  # TJPARAM_...
_YCBCR, _GRAY = 1, 2  # TJCS_...
# Width of a block of the smallest unit by subsampling: 4:4:4, 4:2:2, 4:2:0, gray, 4:4:0, 4:1:1, 4:4:1.
_UNIT_WIDTH = (8, 16, 16, 8, 8, 32, 8)
_local = threading.local()


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


_SIGNATURES = {
    "tj3Init": (ctypes.c_void_p, [ctypes.c_int]),
    "tj3Get": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
    "tj3DecompressHeader": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "tj3SetCroppingRegion": (ctypes.c_int, [ctypes.c_void_p, _Region]),
    "tj3Decompress8": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int, ctypes.c_int],
    ),
    "tj3Destroy": (None, [ctypes.c_void_p]),
}


def _candidates():
    system = ctypes.util.find_library("turbojpeg")
    if system:
        yield system
    try:
        files = importlib.metadata.files("turbojpeg") or ()
    except importlib.metadata.PackageNotFoundError:
        return
    yield from (str(file.locate()) for file in files if file.name.startswith("libturbojpeg"))


@functools.cache
def _library() -> ctypes.CDLL | None:
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            return library
        except (OSError, AttributeError):  # not loadable, or older than version 3
            continue
    return None


def available() -> bool:
    """Whether the library was found."""
    return _library() is not None


class _Handle:
    """One decompressor; ends with the thread that owns it."""

    def __init__(self, library):
        self.library, self.pointer = library, library.tj3Init(_DECOMPRESS)

    def __del__(self):
        self.library.tj3Destroy(self.pointer)


class Jpeg:
    """An encoded JPEG whose header has been read.

    Attributes: height and width, in pixels, as stored (before EXIF orientation).
    Not to be kept: the next `open_jpeg` of the same thread takes its place.
    """

    def __init__(self, data: bytes, library, pointer):
        self._data, self._library, self._pointer = data, library, pointer
        self.height, self.width = library.tj3Get(pointer, _HEIGHT), library.tj3Get(pointer, _WIDTH)

    def decode(self, top: int, left: int, height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 4"] | None:
        """The pixels of a box, RGB and a byte without meaning: a view of a somewhat wider array. None for damaged data."""
        unit = _UNIT_WIDTH[self._library.tj3Get(self._pointer, _SUBSAMPLING)]
        # A region starts at a whole unit. One more on either side, for colours are interpolated across units.
        start = max(0, left // unit - 1) * unit
        end = min(self.width, left + width + unit)
        if self._library.tj3SetCroppingRegion(self._pointer, _Region(start, top, end - start, height)):
            return None
        pixels = np.empty((height, end - start, 4), np.uint8)
        if self._library.tj3Decompress8(self._pointer, self._data, len(self._data), pixels.ctypes.data, 0, _RGBX):
            return None
        return pixels[:, left - start : left - start + width]


def open_jpeg(data: bytes, max_pixels: int) -> Jpeg | None:
    """Read the header of a JPEG.

    Returns None for all that `decoding.decode` has to read instead: no library, no JPEG, damage, an end that is
    missing, colours other than YCbCr and gray, more than 8 bits, more pixels than `max_pixels`.
    """
    library = _library()
    if library is None or b"\xff\xd9" not in data[-64:]:
        return None
    if not hasattr(_local, "handle"):
        _local.handle = _Handle(library)
    pointer = _local.handle.pointer
    if library.tj3DecompressHeader(pointer, data, len(data)):
        return None
    jpeg = Jpeg(data, library, pointer)
    usual = library.tj3Get(pointer, _COLORSPACE) in (_YCBCR, _GRAY) and library.tj3Get(pointer, _PRECISION) == 8
    known = 0 <= library.tj3Get(pointer, _SUBSAMPLING) < len(_UNIT_WIDTH)
    return jpeg if usual and known and 0 < jpeg.height * jpeg.width <= max_pixels else None
