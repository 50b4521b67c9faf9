"""The real training step compiled for a topology, and what its compilation says."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cp2_jax.planning import collectives, traffic
from cp2_jax.planning.chips import Topology
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import mesh, profiling, settings
from cp2_jax.segmentation import step as finetune_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step. All bytes and FLOPs are of one device and one step.

    Attributes:
      kind: of the config, "pretrain" or "finetune".
      topology, devices, hosts, batch_size: what it was compiled for.
      parameters (both encoders'), optimizer, queue, batch: resident arrays; `batch` is all that are kept ready.
      temporaries, code: of the program. peak: all of it together.
      memory: of the device; None where it is not known.
      flops, bytes_accessed: by XLA's count, which leaves out multiplications with padding, and counts a loop's body once
        (None with `accumulate` above 1, whose microbatches are a loop, and on GPUs, where it leaves out cuDNN's work).
      traffic: bytes by part, see `traffic.by_part`.
      collectives: the communication.
      compile_seconds: how long the compiler took.
      error: why the compiler refused, if it did.
    """

    kind: str
    topology: str
    devices: int
    hosts: int
    batch_size: int
    parameters: int
    optimizer: int
    queue: int
    batch: int
    temporaries: int | None
    code: int | None
    peak: int | None
    memory: float | None
    flops: float | None
    bytes_accessed: float | None
    traffic: dict[str, float] | None
    collectives: list[collectives.Collective] | None
    compile_seconds: float
    error: str = ""

    @property
    def fits(self) -> bool | None:
        """Whether the peak fits into the device's memory; None where that is not known."""
        if self.error:
            return False
        return None if self.memory is None else self.peak <= self.memory


def decoded_per_sample(config: ConfigDict) -> int:
    """Return how many images are decoded for one sample: the foreground and two backgrounds, or one."""
    return 3 if config.kind == "pretrain" and config.data.backgrounds == "independent" else 1


def abstract_batch(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a global batch as the step takes it."""
    if config.kind == "pretrain":
        return pretrain_step.abstract_batch(config)
    count, (height, width) = config.batch_size, config.data.crop_size
    return {
        "image": jax.ShapeDtypeStruct((count, height, width, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((count, height, width), jnp.uint8),
        "size": jax.ShapeDtypeStruct((count, 2), jnp.int32),
    }


def compile_step(config: ConfigDict, topology: Topology, images: int) -> Program:
    """Compile a config's step for a topology.

    Args:
      config: of any job, checked for the topology's number of devices.
      topology: the devices, present or described.
      images: of an epoch, for the schedule.

    Returns:
      The program; if the compiler finds that it does not fit, `error` says so and what is not known is None.
    """
    kind, device_mesh = config.kind, mesh.make_mesh(topology.devices)
    length = settings.total_steps(config, images), settings.steps_per_epoch(images, config.batch_size)
    task = {"pretrain": pretrain_step, "finetune": finetune_step}[kind]
    initial_state, step = task.make_step(config, *length, device_mesh)
    arguments = () if kind == "pretrain" else (jax.eval_shape(lambda: finetune_step.init_variables(config)),)
    state, batch = jax.eval_shape(initial_state, *arguments), abstract_batch(config)
    begin = time.monotonic()
    lowered = step.lower(state, batch)
    # What each array of the arguments takes on one device.
    sizes = jax.tree.map(_local_bytes, state, task.state_sharding(device_mesh, state, config.shard_state))
    split = mesh.batch_sharding(device_mesh)
    known = dict(
        kind=kind,
        topology=topology.name,
        devices=len(topology.devices),
        hosts=topology.hosts,
        batch_size=config.batch_size,
        parameters=_total(sizes.params) + _total(getattr(sizes, "key_params", 0)),
        optimizer=_total(sizes.opt_state),
        queue=_total(getattr(sizes, "queue", 0)),
        batch=(1 + config.data.prefetch) * _total(jax.tree.map(lambda x: _local_bytes(x, split), batch)),
        memory=topology.chip.memory if topology.chip else None,
    )
    try:
        compiled = profiling.compile_named(lowered, topology.devices[0].platform)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        unknown = dict.fromkeys(("temporaries", "code", "flops", "bytes_accessed", "traffic", "collectives"))
        seconds, text = time.monotonic() - begin, str(error)
        return Program(**known, **unknown, peak=_wanted(text), compile_seconds=seconds, error=_reason(text))
    seconds = time.monotonic() - begin
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = compiled.as_text()
    looped = config.get("accumulate", 1) > 1
    counted = not looped and topology.devices[0].platform not in profiling.GPUS
    resident = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    ahead = known["batch"] * config.data.prefetch // (1 + config.data.prefetch)
    return Program(
        **known,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        peak=resident + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes + ahead,
        flops=cost.get("flops") if counted else None,
        bytes_accessed=cost.get("bytes accessed") if counted else None,
        traffic=None if looped else traffic.by_part(text),
        collectives=collectives.find(text, len(topology.devices)),
        compile_seconds=seconds,
    )


def _total(tree: Any) -> int:
    return sum(jax.tree.leaves(tree))


def _local_bytes(x: Any, sharding: jax.sharding.Sharding) -> int:
    return math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _wanted(message: str) -> int | None:
    """Return the bytes that the TPU compiler says it would have needed."""
    match = re.search(r"Used ([\d.]+)([KMG]) of", message)
    return int(float(match[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[match[2]]) if match else None


def _reason(message: str) -> str:
    lines = [line for line in message.splitlines() if "Used" in line or "Ran out" in line or "RESOURCE_EXHAUSTED" in line]
    return lines[0].strip()[:300] if lines else message[:300]
