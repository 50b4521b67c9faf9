"""Convolutions as PyTorch pads them, and the one place where a faster exact form may be chosen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# kaiming_normal_(mode="fan_out", nonlinearity="relu"): the original's law for every convolution followed by a norm.
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolve(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs outputs"],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: str = "torch",
) -> Float[Array, "batch out_height out_width outputs"]:
    """2-D convolution, NHWC and HWIO.

    Args:
      padding: "torch": dilation * (size // 2) zeros on each side; "same": TensorFlow's, which for stride 2 and even
        sizes pads less on the leading side.

    Taps of a dilated kernel that can read nothing but padding are left out, which changes no digit: at rate 18 on a
    14 x 14 map only the centre of the 3 x 3 kernel ever meets the image.
    """
    rows, columns = kernel.shape[:2]
    pads = [(dilation * (k // 2),) * 2 for k in (rows, columns)] if padding == "torch" else "SAME"
    if padding == "torch" and stride == 1 and dilation > 1:
        keep, pads = zip(
            *(_useful_taps(k, n, dilation) for k, n in ((rows, x.shape[1]), (columns, x.shape[2]))), strict=True
        )
        kernel = kernel[keep[0], keep[1]]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _useful_taps(taps: int, size: int, dilation: int) -> tuple[slice, tuple[int, int]]:
    """Return the kernel positions along one axis that can meet the image, and the padding that remains."""
    centre = taps // 2
    reach = min(centre, (size - 1) // dilation)
    return slice(centre - reach, centre + reach + 1), (dilation * reach, dilation * reach)


class Conv(nn.Module):
    """Bias-free 2-D convolution with PyTorch's padding; parameter `kernel` [rows, columns, inputs, outputs]."""

    features: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    padding: str = "torch"
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = KAIMING_FAN_OUT

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        return convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            dilation=self.dilation,
            padding=self.padding,
        )
