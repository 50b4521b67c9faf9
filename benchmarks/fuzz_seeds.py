"""Small valid files of every kind that is read, made here: what `fuzz_images.py` damages."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image


def encode(image, kind, **options):
    """Return an image as bytes of a format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _smooth(height=18, width=26):
    y, x = np.mgrid[:height, :width]
    return np.stack([9 * x, 13 * y, 4 * x + 6 * y], -1).astype(np.uint8)


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth, colour, row_bytes, rows=9, width=13, interlaced=0):
    """Return a PNG of any depth and colour type, with random rows."""
    rng = np.random.default_rng(depth * 10 + colour)
    lines = b"".join(b"\0" + rng.integers(0, 256, row_bytes, np.uint8).tobytes() for _ in range(rows))
    header = struct.pack(">IIBBBBB", width, rows, depth, colour, 0, 0, interlaced)
    palette = _chunk(b"PLTE", bytes(value % 256 for value in range(3 * 2**depth))) if colour == 3 else b""
    body = _chunk(b"IHDR", header) + palette + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def images():
    """Return {name: bytes} of images."""
    rgb, exif = Image.fromarray(_smooth()), Image.Exif()
    exif[0x0112] = 6
    grey, alpha = rgb.convert("L"), rgb.convert("RGBA")
    alpha.putalpha(grey)
    made = {
        "gray.jpg": encode(grey, "JPEG"),
        "420.jpg": encode(rgb, "JPEG", quality=80),
        "444.jpg": encode(rgb, "JPEG", quality=90, subsampling=0),
        "progressive.jpg": encode(rgb, "JPEG", progressive=True),
        "restart.jpg": encode(rgb, "JPEG", restart_marker_blocks=1),
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"),
        "turned.jpg": encode(rgb, "JPEG", exif=exif, comment=b"a comment"),
        "several.mpo": encode(rgb, "MPO", save_all=True, append_images=[rgb]),
        "rgb.png": encode(rgb, "PNG", exif=exif),
        "alpha.png": encode(alpha, "PNG"),
        "palette.png": encode(rgb.quantize(16), "PNG", transparency=3),
        "animated.png": encode(rgb, "PNG", save_all=True, append_images=[rgb]),
        "lossy.webp": encode(rgb, "WEBP", quality=70),
        "lossless.webp": encode(rgb, "WEBP", lossless=True, exif=exif),
        "alpha.webp": encode(alpha, "WEBP"),
        "animated.webp": encode(rgb, "WEBP", save_all=True, append_images=[grey.convert("RGB")]),
        "rgb.bmp": encode(rgb, "BMP"),
        "palette.bmp": encode(rgb.quantize(16), "BMP"),
        "one.gif": encode(rgb.quantize(16), "GIF"),
        "animated.gif": encode(rgb.quantize(16), "GIF", save_all=True, append_images=[grey], transparency=1),
        "rgb.ppm": encode(rgb, "PPM"),
        "text.ppm": b"P3 # text\n2 2 1000\n1 2 3 4 5 6 7 8 9 10 11 12\n",
        "deep.pgm": b"P5 3 2 1000\n" + bytes(12),
        "rgb.avif": encode(rgb, "AVIF"),
        "rgb.jp2": encode(rgb, "JPEG2000"),
        "rgb.tga": encode(rgb, "TGA", compression="tga_rle"),
    }
    made |= {f"{d}_{c}.png": png(d, c, n) for d, c, n in ((16, 0, 26), (16, 2, 78), (16, 4, 52), (16, 6, 104), (1, 0, 2))}
    for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd"):
        made[f"{name}.tif"] = encode(rgb, "TIFF", compression=name)
    made["group4.tif"] = encode(grey.convert("1"), "TIFF", compression="group4")
    made["alpha.tif"] = encode(alpha, "TIFF", compression="tiff_lzw", tiffinfo={0x0112: 6})
    made["float.tif"] = encode(Image.fromarray(_smooth()[..., 0].astype(np.float32)), "TIFF")
    made["int.tif"] = encode(Image.fromarray(_smooth()[..., 0].astype(np.int32)), "TIFF")
    made["deep.tif"] = cv2.imencode(".tiff", _smooth().astype(np.uint16) * 16)[1].tobytes()
    made["deep_float.tif"] = cv2.imencode(".tiff", _smooth().astype(np.float32))[1].tobytes()
    return made


def masks():
    """Return {name: bytes} of masks."""
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 5, (9, 13)).astype(np.uint8))
    indexed = grey.copy()
    indexed.putpalette(bytes(range(15)))
    made = {f"grey.{kind.lower()}": encode(grey, kind) for kind in ("PNG", "BMP", "GIF", "TGA", "TIFF", "PPM", "JPEG")}
    made |= {f"indexed.{kind.lower()}": encode(indexed, kind) for kind in ("PNG", "BMP", "GIF", "TGA", "TIFF")}
    made |= {f"{depth}.png": png(depth, 3, -(-13 * depth // 8)) for depth in (1, 2, 4, 8)}
    made |= {f"grey{depth}.png": png(depth, 0, -(-13 * depth // 8)) for depth in (1, 2, 4, 16)}
    made |= {"lzw.tif": encode(indexed, "TIFF", compression="tiff_lzw"), "levels.pgm": b"P5 3 2 20\n" + bytes(range(6))}
    return made | {"bits.pbm": b"P4 8 2\n\xf0\x0f", "lossless.webp": encode(grey, "WEBP", lossless=True)}


def texts():
    """Return {name: bytes} of lists and class files."""
    lines = "# a comment\r\nbackground 0 0 0\r\nzebra crossing, 255, 0, 10\r\nStraße\t1\t2\t3\r\n/a b.jpg 7 8 9\r\n"
    return {name: lines.encode(name) for name in ("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-le")}
