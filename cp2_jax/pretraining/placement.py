"""Where a step's parameters lie and how its key images move between devices. On one device nothing here does anything."""

import dataclasses
from typing import Any

from jax.sharding import Mesh
from jaxtyping import Array, Int, Shaped

from cp2_jax.runs import mesh


@dataclasses.dataclass(frozen=True)
class Placement:
    """The placement of a step's arrays.

    Attributes:
      device_mesh: what the batch is spread over, or None.
      shard_state: parameters and optimiser state are kept split over the devices (ZeRO), and gathered where they are used.
    """

    device_mesh: Mesh | None = None
    shard_state: bool = False

    @property
    def _splits(self) -> bool:
        return self.shard_state and self.device_mesh is not None

    def whole(self, params: Any) -> Any:
        """Return parameters as a forward pass needs them: every device has all of them."""
        return mesh.constrain(params, mesh.replicated(self.device_mesh)) if self._splits else params

    def split(self, params: Any) -> Any:
        """Return parameters as the state and the optimiser keep them: each device has its share."""
        return mesh.constrain(params, mesh.split_largest(self.device_mesh, params)) if self._splits else params

    def share_out(self, gradients: Any) -> Any:
        """Return gradients as the optimiser takes them: each device has its share of their sum."""
        return mesh.share_out(self.device_mesh, gradients) if self._splits else gradients

    def permute(self, rows: Shaped[Array, "batch ..."], order: Int[Array, " batch"]) -> Shaped[Array, "batch ..."]:
        """Return `rows[order]`, spread over the devices as a batch is.

        XLA is told where the result belongs, so that it moves the batch once. Otherwise it gives every device the whole
        batch, and each encodes all keys.
        """
        if self.device_mesh is not None:
            rows = mesh.constrain(rows, mesh.replicated(self.device_mesh))
        return mesh.constrain_batch(rows[order], self.device_mesh)
