"""Colours of classes: PASCAL VOC's, for files that others read, and bright ones that colour-blind people can tell apart."""

import functools

import numpy as np
from jaxtyping import Float, UInt8

# What the two frequent kinds of colour blindness make of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
_PROTAN = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
_DEUTAN = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))

_FIRST = ((255, 221, 0), (0, 114, 255))  # yellow and blue: what all eyes tell apart best


def class_colors(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Return the colours of PASCAL VOC's palette for the first `count` (at most 256) classes; class 0 is black."""
    index, colors = np.arange(count), np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((index >> channel) & 1) << (7 - bit)).astype(np.uint8)
        index = index >> 3
    return colors


def bright_colors(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Return bright colours for the first `count` (at most 256) classes, as different as can be.

    After yellow and blue each colour is that of a regular grid (without pale and dark ones, which do not show over a
    photograph) whose distance to its nearest neighbour among those before is the largest. A distance in L*a*b* (CIE 1976)
    is the least of what eyes without red and eyes without green cones see, and half of what normal eyes see, which tell
    more colours apart. Of the first 8 any two are 31 apart for all eyes, of 12 still 22; 100 cannot be kept apart.
    """
    return _bright()[:count].copy()


@functools.cache
def _bright() -> UInt8[np.ndarray, "256 3"]:
    levels = np.linspace(0, 255, 12).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, *others = seen(grid)[0].T
    grid = grid[(np.hypot(*others) >= 40) & (lightness >= 38) & (lightness <= 96)]
    candidates, nearest, colors = seen(grid), np.full(len(grid), np.inf), []
    while len(colors) < 256:
        color = np.array(_FIRST[len(colors)]) if len(colors) < len(_FIRST) else grid[int(np.argmax(nearest))]
        colors.append(color)
        normal, *blind = np.linalg.norm(candidates - seen(color[None]), axis=-1)
        nearest = np.minimum(nearest, np.min([0.5 * normal, *blind], axis=0))
    return np.array(colors).astype(np.uint8)


def seen(colors: Float[np.ndarray, "count 3"] | UInt8[np.ndarray, "count 3"]) -> Float[np.ndarray, "3 count 3"]:
    """Return L*a*b* coordinates of sRGB colours as normal, protanopic and deuteranopic eyes see them."""
    plain = np.asarray(colors, np.float64) / 255
    linear = np.where(plain <= 0.04045, plain / 12.92, ((plain + 0.055) / 1.055) ** 2.4)
    views = np.stack([linear, linear @ np.array(_PROTAN).T, linear @ np.array(_DEUTAN).T]).clip(0, 1)
    to_xyz = np.array(((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)))
    xyz = views @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
