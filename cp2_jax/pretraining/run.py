"""Pretraining as a function: images, a model and the CP2 step, trained in a work directory."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cp2_jax.convert import warm_start
from cp2_jax.data.errors import UnreadableImage
from cp2_jax.data.images.sizes import warnings
from cp2_jax.data.images.sources import open_held_out, open_source, read_image
from cp2_jax.data.images.stream import Batches, pretrain_dataset
from cp2_jax.options import require
from cp2_jax.paths import AnyPath
from cp2_jax.pretraining import attention_maps, hooks, options, sizes, step
from cp2_jax.runs import distributed, files, mesh, session
from cp2_jax.runs import sizes as open_sizes
from cp2_jax.runs.settings import check_kind
from cp2_jax.runs.writers import Writer


def train(
    config: ConfigDict, workdir: str | AnyPath, *, profile: bool = False, stall_timeout: float = 0.0
) -> session.Result:
    """Pretrain a segmentation model with CP2 (the paper's section 3), or go on where the work directory stands.

    Args:
      config: a pretraining config (see `configs/`); it is not changed. Where it leaves sizes open (-1, as the variant
        `small` does), they are chosen from the number of images and the devices, and printed (see `sizes.fit_to_data`).
      workdir, profile, stall_timeout: see `session.run`.

    Returns:
      The number of finished steps, the work directory and the last metrics.

    Raises:
      ConfigError: an impossible config, another job's config, or a work directory that holds another run.
      SourceError: the images cannot be opened.
      CheckpointError, NonFiniteLoss, Preempted, DisagreementError: see `session.run`.

    Example:
      >>> config = config_files.load("pretrain:small")
      >>> config.data.path = "photos"
      >>> train(config, "runs/photos").metrics["loss"]
    """
    config, workdir = config.copy_and_resolve_references(), files.expand(workdir)
    if not open_sizes.is_open(config, sizes.KEYS):
        options.check(config, jax.device_count())
    distributed.agree(distributed.facts(config, {"--workdir": workdir}))
    source, device_mesh = open_source(config.data), mesh.make_mesh()
    _settle(config, len(source), workdir)
    _check_queue(config, open_sizes.this_machine())
    multiple = math.lcm(config.bn_groups, device_mesh.size)
    for line in warnings(len(source), config.batch_size, config.loss.queue_size, multiple):
        logging.warning(line)
    read = _reader(config)
    read_training = functools.partial(read, source, attention=attention_maps.open_maps(config, source))
    job = session.Job(
        config=config,
        place=config.data.path,
        num_images=len(source),
        names=source.names() if hasattr(source, "names") else (),
        device_mesh=device_mesh,
        make_step=lambda total, per_epoch: step.make_step(config, total, per_epoch, device_mesh),
        first=lambda: _first(config),
        batches=lambda start: _batches(config, read_training, source, device_mesh, start),
        hooks=lambda writer, total, meta: _watchers(config, read, read_training, writer, device_mesh, total),
        stored=functools.partial(_stored, source),
        extra_metrics=lambda batches: {"unreadable_images": batches.unreadable_count},
    )
    return session.run(job, workdir, profile=profile, stall_timeout=stall_timeout)


def _stored(source: Any, index: int) -> bytes:
    """Return an image as it is stored, b"" if it cannot be read: another will take its place."""
    with contextlib.suppress(UnreadableImage):
        return read_image(source, index)
    return b""


def _settle(config: ConfigDict, num_images: int, workdir: str | AnyPath) -> None:
    """Choose the sizes that a config leaves open; then the whole can be checked."""
    check_kind(config, "pretrain")
    if reasons := sizes.settle(config, num_images, open_sizes.this_machine(), workdir):
        open_sizes.say(sizes.summary(config), reasons, workdir)
        options.check(config, jax.device_count())


def _check_queue(config: ConfigDict, machine: open_sizes.Machine) -> None:
    """Refuse a queue that the devices cannot hold: a CPU's would fill the machine's memory before anything fails."""
    rows, room = config.loss.queue_size, machine.memory * machine.devices
    size, most = 4 * rows * config.model.projection_dim, int(room / (4 * config.model.projection_dim))
    fix = f"takes {size / 2**30:.0f} GiB, all devices together have {room / 2**30:.0f}; it must be far below {most:,d}"
    require(size <= room, "loss.queue_size", rows, fix)


def _reader(config: ConfigDict) -> Callable:
    """Return `pretrain_dataset` with what all its uses in a run have in common."""
    return functools.partial(
        pretrain_dataset,
        image_size=config.image_size,
        seed=config.seed,
        crop_scale=config.data.crop_scale,
        backgrounds=config.data.backgrounds,
        value_range=config.data.value_range,
    )


def _batches(config: ConfigDict, read_training: Callable, source, device_mesh: Mesh, start: int) -> Batches:
    """Return the placed batches of this process from batch number `start` on."""
    dataset = read_training(
        batch_size=config.batch_size,
        start_step=start,
        rows=mesh.local_rows(device_mesh, config.batch_size),
        workers=config.data.workers,
    )
    return Batches(
        dataset, source, functools.partial(mesh.place_batch, device_mesh), config.data.prefetch, config.data.value_range
    )


def _watchers(
    config: ConfigDict, read: Callable, read_training: Callable, writer: Writer, device_mesh: Mesh, total: int
) -> Iterator[session.Hook]:
    """Yield the hooks that draw pictures and probe the features, as far as the config asks for them."""
    if config.picture_every:
        few = next(iter(read_training(batch_size=4)))
        yield hooks.pretrain_pictures(config, few, writer, device_mesh, total)
    if config.probe_every:
        held_out = next(iter(read(open_held_out(config.data), batch_size=config.probe_images, prefetch=1)))
        yield hooks.pretrain_probes(config, held_out, writer, device_mesh, total)


def _first(config: ConfigDict) -> session.First:
    """Return the weights before the first step: random ones, or those of `config.init.checkpoint`."""
    if not config.init.checkpoint:
        return session.First()
    loaded = warm_start.load(config)  # before anything is compiled
    distributed.agree_on_arrays(f"init.checkpoint={config.init.checkpoint}", loaded.variables)
    initial = jax.jit(lambda: step.init_variables(config))()
    variables, table = warm_start.start(config, initial, loaded)
    return session.First(variables, warm_start.origin(config, initial), table)
