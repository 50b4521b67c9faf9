"""Metric collections (`clu.metrics`) of the training steps, and what is measured for them on the device."""

import flax.struct
import jax.numpy as jnp
from clu import metrics as clu_metrics
from jaxtyping import Array, Float


@flax.struct.dataclass
class PretrainMetrics(clu_metrics.Collection):
    """One pretraining step; averages over the steps between two lines of the log, `last` where an average means little.

    loss, loss_instance, loss_dense: equations 5, 3, 2.
    accuracy_instance: share of queries whose positive beats the whole queue.
    accuracy_dense: share of foreground query pixels whose most similar key pixel is foreground.
    learned_dense: how far the dense loss went from uniform (0) to the lowest value that it can have (1), averaged over the
      samples with usable masks; see `losses.dense_loss_range`.
    feature_std: see `feature_std`; near 0 the representation has collapsed.
    queue_age: age in steps of the oldest real key.
    skipped_samples: samples of a step that had no usable mask.
    """

    loss: clu_metrics.Average.from_output("loss")
    loss_instance: clu_metrics.Average.from_output("loss_instance")
    loss_dense: clu_metrics.Average.from_output("loss_dense")
    accuracy_instance: clu_metrics.Average.from_output("accuracy_instance")
    accuracy_dense: clu_metrics.Average.from_output("accuracy_dense")
    learned_dense: clu_metrics.Average.from_output("learned_dense")
    feature_std: clu_metrics.Average.from_output("feature_std")
    gradient_norm: clu_metrics.Average.from_output("gradient_norm")
    skipped_samples: clu_metrics.Average.from_output("skipped_samples")
    queue_age: clu_metrics.LastValue.from_output("queue_age")
    learning_rate: clu_metrics.LastValue.from_output("learning_rate")


def feature_std(pooled: Float[Array, "batch channels"]) -> Float[Array, ""]:
    """Spread of unit vectors over the batch: channel-wise standard deviation, averaged, times sqrt(channels).

    1 for vectors spread evenly over the sphere, 0 when all are the same (SimSiam's collapse measure, scaled).
    """
    return jnp.mean(jnp.std(pooled, axis=0)) * jnp.sqrt(pooled.shape[-1]).astype(pooled.dtype)
