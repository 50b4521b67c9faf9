"""The table of heads by their name in `config.model.head`."""

from cp2_jax.models import aspp, fcn, pool
from cp2_jax.models.interface import Head

HEADS: dict[str, Head] = {"aspp": aspp.HEAD, "fcn": fcn.HEAD, "pool": pool.HEAD}
