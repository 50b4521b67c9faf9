"""A linear classifier on frozen features: what a backbone knows, without finetuning's noise and cost."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cp2_jax.models import resize


def cell_shares(label: Int[Array, "batch height width"], stride: int, classes: int) -> Float[Array, "batch h w classes"]:
    """Return the share of each class in each feature's cell of `stride` x `stride` pixels; ignored pixels have none."""
    batch, height, width = label.shape
    one_hot = jax.nn.one_hot(label, classes)  # zeros for 255
    cells = one_hot.reshape(batch, height // stride, stride, width // stride, stride, classes)
    return jnp.mean(cells, axis=(2, 4))


def fit(
    features: Float[Array, "count channels"],
    shares: Float[Array, "count classes"],
    decay: float = 1e-3,
    steps: int = 100,
) -> tuple[Float[Array, "channels classes"], Float[Array, " classes"]]:
    """Fit a softmax regression by L-BFGS from zero: no chance is involved.

    Args:
      features: of all labelled cells. They are standardised inside; the returned weights apply to them as they are.
      shares: targets, see `cell_shares`.
      decay: weight of half the squared norm of the (standardised) weights.
    """
    mean, std = jnp.mean(features, axis=0), jnp.std(features, axis=0) + 1e-6
    standard = (features - mean) / std

    def loss(weights):
        logits = standard @ weights[:-1] + weights[-1]
        return jnp.mean(optax.softmax_cross_entropy(logits, shares)) + decay / 2 * jnp.sum(weights[:-1] ** 2)

    optimizer, value_and_grad = optax.lbfgs(), optax.value_and_grad_from_state(loss)

    def step(carry, _):
        weights, state = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = optimizer.update(gradient, state, weights, value=value, grad=gradient, value_fn=loss)
        return (optax.apply_updates(weights, updates), state), value

    start = jnp.zeros((features.shape[1] + 1, shares.shape[1]), features.dtype)
    (weights, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    kernel = weights[:-1] / std[:, None]
    return kernel, weights[-1] - mean @ kernel


def predict(
    features: Float[Array, "batch h w channels"],
    kernel: Float[Array, "channels classes"],
    bias: Float[Array, " classes"],
    size: tuple[int, int],
) -> Int[Array, "batch height width"]:
    """Return class maps of the images' size: logits upsampled bilinearly, as in finetuning."""
    return jnp.argmax(resize.bilinear(features @ kernel + bias, size), axis=-1)
