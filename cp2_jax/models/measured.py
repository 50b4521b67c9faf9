"""What was measured of the forms in which a convolution can be computed, and what follows for each platform.

`benchmarks/convs.py --rows` prints lines for `MEASURED`. A shape that nobody measured gets XLA's own convolution.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Shape:
    """A convolution with PyTorch's padding: its square map and kernel, channels, and the dtype's name.

    The batch is not part of it: forms differ in how they use what is there for each image.
    """

    size: tuple[int, int]
    inputs: int
    outputs: int
    taps: tuple[int, int]
    stride: int = 1
    dilation: int = 1
    dtype: str = "bfloat16"


@dataclasses.dataclass(frozen=True)
class Forms:
    """The form of each pass: a name of `conv_forms.FORMS`.

    Attributes:
      forward: of the convolution.
      inputs, weights: of the gradient by its input and by its kernel.
    """

    forward: str = "cropped"
    inputs: str = "cropped"
    weights: str = "cropped"


@dataclasses.dataclass(frozen=True)
class Row:
    """Milliseconds of one form's three passes; None where a pass was not measured.

    Attributes:
      card, date, batch: what on, when, and how many images.
    """

    card: str
    date: str
    batch: int
    shape: Shape
    form: str
    forward: float | None
    inputs: float | None
    weights: float | None


_RATE_12 = Shape((14, 14), 2048, 512, (3, 3), dilation=12)
_RATE_6 = Shape((14, 14), 2048, 512, (3, 3), dilation=6)
_RATE_2 = Shape((14, 14), 512, 512, (3, 3), dilation=2)
_H200 = ("H200", "2026-11-26", 256)

# NVIDIA cards. The gradients of "taps" were measured with cotangents, and therefore products, in float32; with bfloat16
# ones, which it takes now, they have not been measured.
MEASURED = (
    Row(*_H200, _RATE_12, "cropped", 1.80, 1.87, 2.76),
    Row(*_H200, _RATE_12, "shifted", 1.07, 1.23, 1.29),
    Row(*_H200, _RATE_12, "taps", 0.51, 1.18, 1.24),
    Row(*_H200, _RATE_6, "cropped", 1.15, 1.16, 2.30),
    Row(*_H200, _RATE_6, "taps", 1.31, 2.63, 2.97),
    Row(*_H200, _RATE_6, "columns", 2.22, 1.64, 2.26),
    Row(*_H200, _RATE_2, "cropped", 0.33, 0.32, 0.86),
    Row(*_H200, _RATE_2, "interleaved", 0.38, 0.38, 0.39),
)

# Another form must take at most this share of XLA's time: less is within what two runs differ by.
_GAIN = 0.95

# Forms of the rest by platform, "default" being any that is not named: see `pooling.max_pool`, `norm.BatchNorm` and
# `augment.blur`. On a CPU, 8 images in float32, seconds of all threads (2 cores of an AMD EPYC, 2026-11-26): the pool
# forward and back 0.228 by scatter, on one thread, and 0.020 by taps; batch norm with ReLU on 56 x 56 x 256 0.020
# differentiated and 0.046 by two sums. For cards nothing of it was timed but XLA's scatter, 1.1 ms; compiled for an H100,
# the pool and what follows it backwards move 17.4 MB a sample by scatter and 6.0 by taps, the whole step 676 MB with
# differentiated norms and 665 with two sums (docs/performance_details.md).
POOL = {"default": "scatter", "cpu": "taps", "cuda": "taps"}
NORM = {"default": "differentiated", "cuda": "two_sums"}


def by_platform(table: Mapping[str, str], forms: Mapping[str, Callable], *arrays: Any, **options: Any) -> Any:
    """Return what a form makes of the arrays: the one that a table, such as `POOL`, has for the platform compiled for."""
    taken = {platform: functools.partial(forms[name], **options) for platform, name in table.items()}
    if len(set(table.values())) == 1:
        return taken["default"](*arrays)
    return jax.lax.platform_dependent(*arrays, **taken)


def choose(platform: str, shape: Shape) -> Forms:
    """Return the forms for a convolution on a platform: "cpu", "cuda" or, for any other, "default".

    CPUs by a rule that `benchmarks/convs.py` gave: XLA's native convolution there reads all the padding of rates 6 and
    12, and takes 2 to 8 times as long over the weight gradient of a 1x1 as a matrix product does; of many channels, rate
    2 and the gradient by a map of many more channels than come out gain a seventh. NVIDIA cards by `MEASURED`, each pass
    by itself. TPUs get XLA's own, unmeasured.
    """
    if platform == "cpu":
        few = shape.taps == (1, 1) or (shape.stride == 1 and shape.dilation > 2)
        wide = shape.stride == 1 and shape.inputs >= 512
        by_rate = few or (wide and shape.dilation == 2)
        chosen = by_rate, by_rate or (wide and shape.inputs > 4 * shape.outputs), few
        return Forms(*("shifted" if shift else "cropped" for shift in chosen))
    if platform != "cuda":
        return Forms()
    rows = {row.form: row for row in MEASURED if row.shape == shape}  # of several runs the last in the table
    return Forms(**{name: _fastest(rows, name) for name in ("forward", "inputs", "weights")})


def _fastest(rows: dict[str, Row], name: str) -> str:
    times = {form: getattr(row, name) for form, row in rows.items() if getattr(row, name) is not None}
    best = min(times, key=times.get, default="cropped")
    usual = times.get("cropped")
    return best if usual is not None and times[best] <= _GAIN * usual else "cropped"
