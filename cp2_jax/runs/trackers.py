"""Experiment trackers beside the work directory: MLflow and Weights & Biases, each installed only by who wants it.

A run goes on without a tracker that fails: the work directory has everything, and one warning says what happened.
"""

import dataclasses
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict

from cp2_jax.options import ConfigError, flatten, nearest
from cp2_jax.paths import AnyPath, BucketPath, at, save_json
from cp2_jax.runs import settings

Picture = UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True)
class Service:
    """One run at a tracker, as functions that may wait for a server, and may fail.

    Attributes:
      run: the tracker's name of the run, by which a resumption finds it.
      scalars, image: `(step, values)` and `(step, name, picture)`.
      close: says that the run has ended.
    """

    run: str
    scalars: Callable[[int, Mapping[str, float]], None]
    image: Callable[[int, str, Picture], None]
    close: Callable[[], None]


def mlflow(workdir: AnyPath, config: Mapping[str, Any], run: str | None) -> Service:
    """Open a run of MLflow in the experiment "cp2_jax", named after the work directory.

    MLflow itself decides where it goes: `MLFLOW_TRACKING_URI`, or its own default.

    Args:
      config: plain values by dotted key; they become the run's parameters.
      run: the id of a run to go on with.
    """
    import mlflow as library  # here: it is an extra
    from mlflow.entities import Metric, Param

    client = library.MlflowClient()
    if run is None:
        experiment = client.get_experiment_by_name("cp2_jax")
        number = experiment.experiment_id if experiment else client.create_experiment("cp2_jax")
        run = client.create_run(number, run_name=workdir.name).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in config.items()]
        for first in range(0, len(params), 100):  # as many as a request may have
            client.log_batch(run, params=params[first : first + 100])
    client.update_run(run, status="RUNNING")

    def scalars(step, values):
        now = int(1000 * time.time())
        client.log_batch(run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def image(step, name, picture):
        client.log_image(run, picture, key=name, step=step, synchronous=True)

    return Service(run, scalars, image, lambda: client.set_terminated(run))


def wandb(workdir: AnyPath, config: Mapping[str, Any], run: str | None) -> Service:
    """Open a run of Weights & Biases in the project "cp2_jax" (or `WANDB_PROJECT`), named after the work directory.

    Args:
      config, run: see `mlflow`.
    """
    import wandb as library  # here: it is an extra

    project = os.environ.get("WANDB_PROJECT", "cp2_jax")
    opened = library.init(
        project=project, name=workdir.name, dir=_local(workdir), config=dict(config), id=run, resume="allow"
    )
    # A resumed run computes some steps again, and W&B's own count of steps cannot go back.
    opened.define_metric("step")
    opened.define_metric("*", step_metric="step")

    def image(step, name, picture):
        opened.log({"step": step, name: library.Image(picture)})

    return Service(opened.id, lambda step, values: opened.log({"step": step} | dict(values)), image, opened.finish)


def _local(workdir: AnyPath) -> str:
    """Return a folder on the disk for a library that wants one."""
    return tempfile.mkdtemp(prefix="cp2_jax_") if isinstance(workdir, BucketPath) else str(workdir)


SERVICES = {"mlflow": mlflow, "wandb": wandb}


def check(names: str) -> list[str]:
    """Return the trackers that `config.trackers` names.

    Raises:
      ConfigError: for one that is not known, or not installed.
    """
    listed = [name.strip() for name in names.split(",") if name.strip()]
    for name in listed:
        if name not in SERVICES:
            raise ConfigError(
                f"trackers={names!r}: there is no {name!r}{nearest(name, SERVICES)}; known: {', '.join(SERVICES)}"
            )
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # W&B leaves a folder of its name, which looks like a package
            raise ConfigError(f"trackers={names!r}: {name} is not installed; run: pip install {name}")
    return listed


class Tracker:
    """A `Service` that never holds up or ends the training: calls are made one after the other in a thread of their own.

    After the first call that fails nothing more is sent, and a warning says why.

    Args:
      name: of the service, for the warning.
    """

    def __init__(self, name: str, service: Service):
        self._name, self._service, self._failed = name, service, False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send metrics by name; `step` is the number of finished steps."""
        self._thread.submit(self._try, self._service.scalars, step, dict(values))

    def image(self, step: int, name: str, picture: Picture) -> None:
        """Send a picture."""
        self._thread.submit(self._try, self._service.image, step, name, picture)

    def close(self) -> None:
        """Send what is left, and say that the run has ended."""
        self._thread.submit(self._try, self._service.close)
        self._thread.shutdown()

    def _try(self, call: Callable, *arguments: Any) -> None:
        if self._failed:
            return
        try:
            call(*arguments)
        except Exception as error:  # a library's or a server's, of any kind
            self._failed = True
            logging.warning(
                "%s gets no more of this run (%s: %s); everything is in the work directory",
                self._name,
                type(error).__name__,
                str(error).partition("\n")[0],
            )


def open_all(config: ConfigDict, workdir: str | AnyPath, resumed: bool) -> list[Tracker]:
    """Open the trackers of `config.trackers`; only the first of several processes does.

    Args:
      workdir: gets `trackers.json` with the trackers' own names of the run, so that a resumption goes on with it.
      resumed: whether the run goes on from a checkpoint.

    Raises:
      ConfigError: see `check`, or a tracker that cannot be opened.
    """
    names, workdir = check(config.trackers), at(workdir)
    if jax.process_index() or not names:
        return []
    path = workdir / "trackers.json"
    known = _known(path) if resumed else {}
    opened = []
    for name in names:
        try:
            service = SERVICES[name](workdir, flatten(settings.as_plain(config)), known.get(name))
        except Exception as error:  # a library's or a server's, of any kind
            raise ConfigError(f"trackers={config.trackers!r}: {name} cannot be opened: {error}") from error
        known[name] = service.run
        opened.append(Tracker(name, service))
    save_json(path, known)
    return opened


def _known(path: AnyPath) -> dict[str, str]:
    """Return the trackers' names of the run; none, with a warning, where the file of them is damaged."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        logging.warning("%s is damaged (%s): the trackers begin another run", path, error)
        return {}
