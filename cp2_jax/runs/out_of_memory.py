"""What to say when a device's memory is too small."""

from ml_collections import ConfigDict

from cp2_jax.options import flatten

REMEDIES = "try remat=True, accumulate=bn_groups, a smaller batch_size, or more devices"


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error of JAX's runtime or compiler is about memory."""
    text = str(error)
    return any(sign in text for sign in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory"))


def advice(config: ConfigDict, error: Exception) -> str:
    """Return one message that names the config values to change, the cheapest remedy first."""
    flat = flatten(config)
    remedies = [
        ("remat", lambda v: v is False, "True: about a third more work, the same results"),
        ("accumulate", lambda v: v < flat["bn_groups"], f"up to bn_groups={flat['bn_groups']}: the same results"),
        ("shard_state", lambda v: v is False, "True, on several devices: the same results"),
        ("model.dtype", lambda v: v != "bfloat16", "bfloat16"),
        ("batch_size", lambda v: v > 1, "less, or the same on more devices"),
        ("evaluation.batch_size", lambda v: v != 0, "0: one image a device"),
        ("data.crop_size" if "data.crop_size" in flat else "image_size", lambda v: True, "smaller"),
        ("loss.queue_size", lambda v: True, "smaller; it is split over the devices"),
        ("data.prefetch", lambda v: v > 1, "1"),
    ]
    lines = [f"  {key}={flat[key]}: {fix}" for key, helps, fix in remedies if key in flat and helps(flat[key])]
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]
    return (
        f"a device's memory is too small ({first}). Lower, the first that suffices:\n" + "\n".join(lines) + "\n"
        "cp2 plan says before a run how much it needs"
    )
