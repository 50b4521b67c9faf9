"""A ViT's position table at another size than it was made for."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_positions(
    table: Float[Array, "1 positions width"], grid: tuple[int, int]
) -> Float[Array, "1 new_positions width"]:
    """Resize a square position table to `grid` (rows, columns); the class token's entry stays.

    PyTorch's bicubic interpolation (a = -0.75, align_corners=False, no antialiasing), which CP2 and DINO use.
    `jax.image.resize` has a = -0.5 and antialiases.
    """
    side = int(round((table.shape[1] - 1) ** 0.5))
    if (side, side) == tuple(grid):
        return table
    square = table[:, 1:].reshape(side, side, -1)
    rows, columns = (jnp.asarray(_bicubic_matrix(side, n), table.dtype) for n in grid)
    exact = jax.lax.Precision.HIGHEST
    resized = jnp.einsum("ij,jkc,lk->ilc", rows, square, columns, precision=exact)
    return jnp.concatenate([table[:, :1], resized.reshape(1, -1, table.shape[2])], axis=1)


def _bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Weights [new, old] of one axis; samples beyond the border repeat the border's."""
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(centre - (first + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * a * distance - 4 * a
        weight = np.where(distance <= 1, near, far)
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), weight)
    return matrix
