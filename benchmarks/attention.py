"""ViT-S's attention by XLA and by cuDNN's fused kernels: forward and gradient, at pretraining's and finetuning's lengths.

    python benchmarks/attention.py [--batch 256] [--json FILE]

bfloat16, 6 heads of 64. "auto" is what a model takes by default on this machine; the line says which that is.
"""

import jax
import jax.numpy as jnp
import timing

from cp2_jax.models import attention

# tokens: (images at once of pretraining at 224 pixels, of finetuning at 512), the class token included
LENGTHS = {197: 1.0, 1025: 1 / 16}


def measure(form, tokens, batch):
    """Return milliseconds of the forward pass and of the gradient, and the gradient's temporaries in MB."""
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, (batch, tokens, 6, 64), jnp.bfloat16) for key in keys]
    attend = attention.ATTENTIONS[form]
    gradient = jax.jit(jax.grad(lambda *qkv: jnp.sum(attend(*qkv).astype(jnp.float32) ** 2), (0, 1, 2)))
    compiled = gradient.lower(*arrays).compile()
    return {
        "forward_ms": 1e3 * timing.per_call(jax.jit(attend), *arrays),
        "gradient_ms": 1e3 * timing.per_call(compiled, *arrays),
        "temporaries_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
    }


def main(arguments=None):
    parser = timing.parser(__doc__)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args(arguments)
    timing.take_card()
    cards = attention._cards()
    query = jax.ShapeDtypeStruct((args.batch, 200, 6, 64), jnp.bfloat16)
    reason = attention.obstacle(query, cards) if cards else "no NVIDIA card"
    result = {**timing.machine(), "batch": args.batch, "auto_is": f"xla: {reason}" if reason else "cudnn"}
    for tokens, share in ({17: 1.0, 65: 1 / 16} if args.tiny else LENGTHS).items():
        for form in ["xla"] if reason else ["xla", "cudnn", "auto"]:
            measured = measure(form, tokens, max(1, int(args.batch * share)))
            result |= {f"{form}_{tokens}_{name}": value for name, value in measured.items()}
    timing.report(result, args.json)
    return result


if __name__ == "__main__":
    main()
