"""What the timing benchmarks share: a timer, the rate of a large matrix product, the machine in words, tiny models."""

import argparse
import dataclasses
import fcntl
import json
import os
import pathlib
import platform
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np

from cp2_jax.configs import pretrain_r50_aspp, pretrain_vit_aspp
from cp2_jax.models import measured
from cp2_jax.runs import settings

CONFIGS = {"r50_aspp": pretrain_r50_aspp, "vit_aspp": pretrain_vit_aspp}
IMAGES = 1_281_167  # of an epoch: ImageNet's

_card = {}


def parser(doc):
    """Return a parser with the arguments that all have."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--json", type=pathlib.Path, help="file to write")
    made.add_argument("--tiny", action="store_true", help="a tiny model and small images: does it run?")
    made.add_argument("--forms", type=pathlib.Path, help="what convs.py --json wrote: forms are chosen by it as well")
    return made


def take_card():
    """Wait until no other benchmark runs on the card, and keep it until this process ends.

    Of programs that benchmarks/gpu.sh starts side by side, one is on the card while others trace and compile on the host:
    CARD_LOCK names the file that they lock. CARD_SECONDS later the process is ended.
    """
    path = os.environ.get("CARD_LOCK")
    if path and not _card:
        _card["file"] = open(path, "w")
        fcntl.flock(_card["file"], fcntl.LOCK_EX)
        _card["since"] = time.perf_counter()
        signal.alarm(int(os.environ.get("CARD_SECONDS", 0)))


def use_forms(path):
    """Let the table of measured forms have the rows of a file, as if they stood at its end, and the faster forms of
    max-pool and batch norm be NVIDIA cards'."""
    if path is None:
        return
    found = json.loads(path.read_text())
    pool = {form: found[name] for form in ("taps", "scatter") if (name := f"pool_{form}_gradient_ms") in found}
    if pool:
        measured.POOL = {**measured.POOL, "cuda": min(pool, key=pool.get)}
    times = {
        form: [v for k, v in found.items() if k.endswith(f"{form}_gradient_ms")] for form in ("differentiated", "two_sums")
    }
    if all(times.values()):
        measured.NORM = {**measured.NORM, "cuda": min(times, key=lambda form: sum(times[form]))}
    rows = [dict(row) for row in found["measured"]]
    for row in rows:
        shape = {key: tuple(v) if isinstance(v, list) else v for key, v in row["shape"].items()}
        row["shape"] = measured.Shape(**shape)
    measured.MEASURED += tuple(measured.Row(**row) for row in rows)


def timed(step, steps, warm_up):
    """Return the least seconds of `steps` calls after those that warm up."""
    return min(in_turn({"": step}, steps, warm_up)[""][0])


def in_turn(steps, rounds, warm_up):
    """Call each of {name: function} once, and so on, `rounds` times after those that warm up.

    Returns {name: (seconds of each call by the wall clock, seconds of CPU time over all threads)}.
    """
    times = {name: ([], []) for name in steps}
    for _ in range(rounds + warm_up):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            times[name][0].append(time.perf_counter() - wall)
            times[name][1].append(time.process_time() - cpu)
    return {name: tuple(kind[warm_up:] for kind in kinds) for name, kinds in times.items()}


def per_call(function, *args, calls=20, rounds=3):
    """Return seconds of a call on the device: `calls` of them are handed over before the last is waited for."""

    def several():
        for _ in range(calls):
            last = function(*args)
        jax.block_until_ready(last)

    return timed(several, rounds, 1) / calls


def matmul_rate(dtype, size=0, warm_up=3):
    """Return the rate of a square matrix product, in operations per second."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / timed(lambda: jax.block_until_ready(product(x)), 10, warm_up)


def torch_card(device):
    """Return the name of the card that PyTorch sees."""
    import torch

    return torch.cuda.get_device_name(0) if device == "cuda" else device


def machine(kind=None):
    """Return what was measured on; `kind`: the card's name, where JAX does not see it."""
    kind = kind or jax.devices()[0].device_kind
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {kind}, load {os.getloadavg()[0]:.1f}",
        "card": kind,
        "date": time.strftime("%Y-%m-%d"),
        "jax": jax.__version__,
    }


def peak_bytes():
    """Return the most bytes of the first device that were in use at once so far; None where it is not told."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None


def make_config(model, batch, dtype, tiny, groups=1, shuffle="none"):
    """Return a pretraining config, checked for nothing."""
    config = CONFIGS[model].get_config()
    config.batch_size, config.bn_groups, config.key_shuffle = batch, groups, shuffle
    config.model.dtype = dtype
    config.data.backgrounds = "in_batch"
    if tiny:
        config.image_size = 64
        config.model.resnet.update(width=8, stem_width=8, stage_sizes=(1, 1, 1, 1))
        config.model.vit.update(width=32, depth=1, heads=2)
        config.model.aspp.channels = 16
    config.loss.queue_size = (1024 if tiny else 65536) // batch * batch
    return config


def lengths(config):
    """Return the schedule's steps and steps of an epoch: the plan's, so that its program is the one that was timed."""
    return settings.total_steps(config, IMAGES), settings.steps_per_epoch(IMAGES, config.batch_size)


def composed(config):
    """Return images and masks as `augment.compose` makes them, as NumPy: query and key of each."""
    side, rng = config.image_size, np.random.default_rng(0)
    images = rng.normal(size=(2, config.batch_size, side, side, 3)).astype(np.float32)
    masks = np.zeros((2, config.batch_size, side, side), np.float32)
    masks[:, :, side // 11 : -side // 11, side // 11 : -side // 11] = 1
    return images, masks


def crops(config):
    """Return a batch of uint8 crops, as the host hands it over: smooth, as photos are."""
    rng, side = np.random.default_rng(0), config.image_size
    coarse = rng.integers(0, 256, (config.batch_size, 2, side // 16, side // 16, 3), np.uint8)
    return {"foreground": np.kron(coarse, np.ones((1, 1, 16, 16, 1), np.uint8))}


def report(result, path=None):
    """Print the figures, then all as a line of JSON; write it to a file."""
    if _card:
        result["card_seconds"] = time.perf_counter() - _card["since"]
    for name, value in result.items():
        if not isinstance(value, dict | list):
            print(f"{name:36s} {value:.4g}" if isinstance(value, float) else f"{name:36s} {value}")
    text = json.dumps(result, default=dataclasses.asdict)
    if path:
        path.write_text(text + "\n")
    print(text)
