"""Floating-point operations of a model by the dense count: 2 per multiply-add, multiplications with padding included."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from cp2_jax.models import attention, conv
from cp2_jax.pretraining import forward


def forward_flops(config: ConfigDict) -> float:
    """Return the dense count of one forward pass of one image: convolutions, dense layers, attention's two products."""
    total = 0

    def count(next_call, args, kwargs, context):
        nonlocal total
        result = next_call(*args, **kwargs)
        layer = context.module
        if context.method_name != "__call__":
            return result
        if isinstance(layer, conv.Conv | nn.Conv | nn.Dense):
            taps = {conv.Conv: lambda: layer.size**2, nn.Conv: lambda: _product(layer.kernel_size), nn.Dense: lambda: 1}
            total += 2 * result.size * taps[type(layer)]() * args[0].shape[-1]
        elif isinstance(layer, attention.Attention):
            tokens, width = args[0].shape[1:]
            total += 2 * 2 * tokens * tokens * width
        return result

    model, _ = forward.build_models(config)
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    with nn.intercept_methods(count):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return total


def step_flops(config: ConfigDict) -> float:
    """Return the dense count of one training step, per sample: query forward and backward (twice that), key forward."""
    return 4 * forward_flops(config)


def _product(numbers):
    result = 1
    for number in numbers:
        result *= number
    return result
