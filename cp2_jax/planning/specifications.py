"""What bounds on a plan are made of: the specification of a chip."""

import dataclasses


class PlanError(Exception):
    """A plan cannot be made; the message says why and what would work."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX calls one device: a chip, or on TPU v2 and v3 one of a chip's two cores.

    Attributes:
      memory: bytes of HBM.
      flops: peak per second, bfloat16 (float16 on older GPUs).
      memory_rate: bytes per second of HBM.
      link_rate: bytes per second of all links to other chips together, one direction.
    """

    memory: float
    flops: float
    memory_rate: float
    link_rate: float
