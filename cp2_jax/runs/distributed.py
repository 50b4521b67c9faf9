"""The start of a run on several processes: who takes part, and that all run the same. For its end see `leaving`."""

import hashlib
import json
import os
import pathlib
import socket
import zlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from cp2_jax.options import ConfigError, flatten
from cp2_jax.runs import leaving
from cp2_jax.runs.settings import as_plain

_PACKAGE = pathlib.Path(__file__).parents[1]
# Seconds by which JAX's own heartbeats are more patient than ours: its words are a stack trace, and SIGABRT.
_LONGER = 15
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint", "numpy")


class DisagreementError(Exception):
    """Processes of one run were started differently; the message names the differing keys or files."""


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_timeout: int = 300,
    heartbeat_timeout: int = 60,
) -> None:
    """Join the other processes of the run, if there are any. To be called before JAX is asked for its devices.

    Args:
      coordinator, num_processes, process_id: "host:port" of process 0, how many processes, which one this is. All None:
        Slurm, Open MPI, Cloud TPU and GKE are recognised by their environment; without one, this is the only process.
      start_timeout: seconds to wait for all to come.
      heartbeat_timeout: seconds after which a process that gives no sign of life is taken for dead, and all others stop.

    Raises:
      ConfigError: if only some of the three are given, or they cannot be; if process 0 cannot listen on its port; if not
        all processes come in time.
    """
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < 3:
        raise ConfigError(f"{', '.join(missing)} is missing: give all of {', '.join(given)}, or none")
    if missing and not in_cluster(os.environ):
        return
    if not missing and not 0 <= process_id < num_processes:
        raise ConfigError(f"--process_id={process_id} must lie between 0 and --num_processes={num_processes} less 1")
    if not missing:
        _check_port(coordinator, here=process_id == 0)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        with leaving.answering("stopped by SIGTERM before the run began: run the same command again"):
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                # JAX would leave a process one device only, if it saw Slurm or Open MPI beside explicit addresses.
                cluster_detection_method=None if missing else "deactivate",
                initialization_timeout=start_timeout,
                heartbeat_timeout_seconds=heartbeat_timeout + _LONGER,
                # Process 0 may write pictures and scores at the end, while the others have nothing left to do.
                shutdown_timeout_seconds=max(600, heartbeat_timeout),
            )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes of this run did not find each other within {start_timeout} s ({str(error).splitlines()[0]}); "
            "look whether all were started, and with the same --coordinator and --num_processes"
        ) from error
    leaving.watch(heartbeat_timeout)


def _check_port(coordinator: str, here: bool) -> None:
    """Refuse a coordinator without a port, or with one on which process 0 cannot listen: JAX's service would crash there.

    Args:
      here: this is process 0.

    Raises:
      ConfigError: saying what to give.
    """
    port = coordinator.rpartition(":")[2]
    if not (port.isdecimal() and 0 < int(port) < 2**16 and ":" in coordinator):
        raise ConfigError(f"--coordinator={coordinator}: give host and port of process 0, such as node0:8476")
    if here:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise ConfigError(
                f"--coordinator={coordinator}: process 0 cannot listen on port {port} ({os.strerror(error.errno)}); is "
                "another run there? Give another port to all processes"
            ) from error


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Say whether the environment is that of one process among several, which JAX can find by itself."""

    def several(name: str) -> bool:
        return int(environment.get(name, "1") or 1) > 1

    slurm = "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment and several("SLURM_NTASKS")
    open_mpi = "OMPI_MCA_orte_hnp_uri" in environment and several("OMPI_COMM_WORLD_SIZE")
    # Cloud TPU's hosts ask their metadata server, GKE's pods have TPU_WORKER_HOSTNAMES. Elsewhere libtpu may be
    # installed too, for planning.
    tpu = any(pathlib.Path(device).exists() for device in ("/dev/accel0", "/dev/vfio/0"))
    return slurm or open_mpi or (tpu and environment.get("JAX_PLATFORMS", "tpu") in ("", "tpu", "tpu,cpu"))


def facts(config: ConfigDict, more: Mapping[str, object] | None = None) -> dict[str, str]:
    """Return what must be the same on all processes: config values, the package's files, libraries' versions, `more`."""
    files = {path.relative_to(_PACKAGE.parent): path.read_bytes() for path in sorted(_PACKAGE.rglob("*.py"))}
    return (
        {f"config.{key}": json.dumps(value) for key, value in flatten(as_plain(config)).items()}
        | {f"file {path}": hashlib.sha256(text).hexdigest()[:12] for path, text in files.items()}
        | {f"library {name}": metadata.version(name) for name in _LIBRARIES}
        | {key: str(value) for key, value in (more or {}).items()}
    )


def agree(mine: Mapping[str, str]) -> None:
    """Let all processes compare their `facts`; every one calls it, and on a difference every one raises.

    Raises:
      DisagreementError: naming what differs, and how.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(mine, sort_keys=True).encode()
    digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(text).digest(), np.uint32))
    if (digests == digests[0]).all():
        return
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    texts = multihost_utils.process_allgather(padded)
    everyone = [json.loads(bytes(row[:size])) for row, size in zip(texts, sizes, strict=True)]
    raise DisagreementError(differences(everyone))


def agree_on_arrays(what: str, tree: Any) -> None:
    """Let all processes compare arrays that each of them has read for itself; every one calls it.

    Args:
      what: they are, for the message.
      tree: of arrays on the host.

    Raises:
      DisagreementError: they differ, because a run was saving just then, or each host has a file of its own.
    """
    if jax.process_count() == 1:
        return
    number = 0
    for leaf in jax.tree.leaves(tree):
        number = zlib.crc32(np.asarray(leaf).tobytes(), number)
    agree({what: f"arrays with checksum {number:08x}"})


def raise_together(mine: Exception | None) -> None:
    """Let all processes stop where one has met an error while they worked apart; every one calls it.

    Args:
      mine: what this process met; raised if it is one.

    Raises:
      DisagreementError: another process met something, which it says itself.
    """
    failed = np.array([mine is not None])
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.int32(mine is not None)).ravel()
    if mine is not None:
        raise mine
    if failed.any():
        raise DisagreementError(f"process {int(np.argmax(failed))} of this run stopped: see its message")


def any_of(mine: bool) -> bool:
    """Return whether it is so in any process; every one calls it."""
    return bool(np.any(multihost_utils.process_allgather(np.int32(mine)))) if jax.process_count() > 1 else mine


def differences(everyone: list[Mapping[str, str]]) -> str:
    """Return the message on what differs between the first process and others."""
    first, lines = everyone[0], []
    for key in sorted(set().union(*everyone)):
        others = {number: facts.get(key, "absent") for number, facts in enumerate(everyone)}
        odd = [number for number, value in others.items() if value != first.get(key, "absent")]
        if odd:
            more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
            lines.append(f"  {key}: process 0 has {others[0]}, process {odd[0]} has {others[odd[0]]}{more}")
    shown = lines[:12] + ([f"  … and {len(lines) - 12} more"] if len(lines) > 12 else [])
    return "the processes of this run were started differently:\n" + "\n".join(shown) + "\nStart all with the same"


def several() -> bool:
    """Say whether this process is one of several; asks for no devices."""
    return jax.distributed.is_initialized()
