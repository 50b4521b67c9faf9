"""One run from start to end, for any task: agreement, saved config, first weights, resumption, overview, loop, closing.

Training a task is to describe it as a `Job` and to call `run`. The jobs are `pretraining.run.train` and
`segmentation.run.train`. Errors are exceptions; only the command line turns them into lines and exit codes.
"""

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cp2_jax.options import ConfigError
from cp2_jax.paths import AnyPath, save_as, save_folder
from cp2_jax.runs import distributed, files, leaving, lock, loop, profiling, settings, shared, trackers
from cp2_jax.runs.bucket_checkpoints import open_checkpoints
from cp2_jax.runs.writers import Writer

_LOOKED_INTO = 8  # images whose contents a resumed run compares

Hook = Callable[[int, Any], None]


@dataclasses.dataclass(frozen=True)
class First:
    """The weights before the first step.

    Attributes:
      variables: {'params', 'batch_stats'}, or None for the step's own random ones.
      origin: one line on what was loaded and what starts at random.
      details: a table of the same, for `overview.txt`.
      resumed: whether they are a checkpoint's of this very run.
    """

    variables: Any = None
    origin: str = "from scratch"
    details: str = ""
    resumed: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """What a task gives to `run`.

    Attributes:
      config: validated; `kind`, the lengths of the run and the intervals between its actions are read here.
      place: where the images come from, for the screen.
      num_images: length of an epoch.
      names: of the images, which a resumed run compares; none where they have no names.
      device_mesh: of all devices.
      make_step: `(total_steps, steps_per_epoch) -> (initial_state, step)`: `initial_state(variables)` gives the placed
        state and `step(state, batch)` gives (state, metrics).
      first: called when the run has no checkpoint yet.
      batches: `(first step) -> iterator` of placed batches, with a method `close`.
      hooks: `(writer, total_steps, meta) -> hooks` that `loop.fit` calls after each step.
      extra_metrics: `(batches) -> values` for each line of the log.
      lines: what the curves are compared with, see `pictures.curves`.
      stored: `(number of an image) -> bytes` as they are stored, b"" if they cannot be read; a few are compared, too.
      ended: `(number of finished steps) -> reason` why a run counts as finished before its last step, "" if it does not.
    """

    config: ConfigDict
    place: str
    num_images: int
    names: Sequence[str]
    device_mesh: Mesh
    make_step: Callable[[int, int], tuple[Callable, Callable]]
    first: Callable[[], First]
    batches: Callable[[int], Iterator]
    hooks: Callable[[Writer, int, dict], Iterable[Hook]]
    extra_metrics: Callable[[Iterator], dict[str, float]] = lambda batches: {}
    lines: Mapping[str, Sequence[tuple[str, float]]] = dataclasses.field(default_factory=dict)
    stored: Callable[[int], bytes] = lambda index: b""
    ended: Callable[[int], str] = lambda step: ""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
      steps: number of finished steps, of this call and those before.
      workdir: where checkpoints, metrics and pictures are.
      metrics: the last value of each metric by name, as in `metrics.jsonl`.
    """

    steps: int
    workdir: AnyPath
    metrics: dict[str, float]


def run(job: Job, workdir: str | AnyPath, *, profile: bool = False, stall_timeout: float = 0.0) -> Result:
    """Train a job in its work directory; go on from its newest checkpoint if it has one.

    Args:
      workdir: made if absent; also in a bucket, `gs://…` or `s3://…`. Gets `config.json`, `overview.txt`, `checkpoints`,
        `metrics.jsonl` and pictures.
      profile: trace a few steps into `workdir/profile`, print where their time goes, and end.
      stall_timeout: seconds without a finished step after which a run of several processes stops (with status
        `leaving.TRY_AGAIN`); 0: never.

    Raises:
      ConfigError: the work directory holds a run with another config or other images, or is beyond the steps asked for.
      Busy: another run is at work in the work directory.
      CheckpointError: a checkpoint is damaged or of another model, or cannot be written.
      WriteError: the disk is full or read-only, or there is a file where the work directory should be.
      BucketError: the work directory's bucket refuses, or does not answer (`Unreachable`, after which it can be resumed).
      NonFiniteLoss, Preempted: see `loop.fit`.
      DisagreementError: the processes of the run see different images, work directories or checkpoints.
    """
    workdir = files.expand(workdir)
    with files.written(workdir):
        return _run(job, workdir, profile, stall_timeout)


def _run(job: Job, workdir: AnyPath, profile: bool, stall_timeout: float) -> Result:
    config = job.config
    images = {"number": job.num_images, "names": _digest(job.names)}
    distributed.agree({f"{key} of images": str(value) for key, value in images.items()})
    steps_per_epoch = settings.steps_per_epoch(job.num_images, config.batch_size)
    total_steps = settings.total_steps(config, job.num_images)
    images |= {"contents": _contents(job)}
    meta = {"kind": config.kind, "config": settings.as_plain(config), "images": images}
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as closing:
        still_held = closing.enter_context(lock.held(workdir))
        shared.check(workdir)
        settings.check_config(workdir, config)
        checkpoints = closing.enter_context(contextlib.closing(open_checkpoints(workdir / "checkpoints", config.keep)))
        closing.enter_context(leaving.resumable(checkpoints.latest_step))
        distributed.agree({f"newest checkpoint in {checkpoints.directory}": f"step {checkpoints.latest_step()}"})
        resumed = _may_go_on(job, checkpoints, images, total_steps)
        settings.save_config(workdir, config)  # what was refused changes nothing
        first = First(resumed=True) if resumed else job.first()
        initial_state, step = job.make_step(total_steps, steps_per_epoch)
        state = initial_state(first.variables)
        if first.resumed:
            state, _ = checkpoints.restore(state)
            first = dataclasses.replace(first, origin=f"resuming after step {int(state.step)}")
        first = dataclasses.replace(first, variables=None)  # they would take room as long as the run lasts
        length = f"{total_steps} steps, {steps_per_epoch} an epoch"
        _overview(job, state, first, workdir, length)
        start = int(state.step)
        if reason := job.ended(start):
            _say(reason)
            return Result(start, workdir, {})
        batches = closing.enter_context(contextlib.closing(job.batches(start)))
        if profile:
            with save_folder(workdir / "profile") as folder:
                _say(profiling.profile(step, state, batches, folder))
            return Result(start, workdir, {})
        title = {"pretrain": "pretraining", "finetune": "finetuning"}.get(config.kind, config.kind)
        told = trackers.open_all(config, workdir, resumed=start > 0)
        with Writer(workdir, total_steps, start, title, told) as writer:
            state = loop.fit(
                step,
                state,
                batches,
                total_steps=total_steps,
                writer=writer,
                checkpoints=checkpoints,
                meta=meta,
                save_every=config.save_every,
                log_every=config.log_every,
                samples_per_step=config.batch_size,
                extra_metrics=lambda: job.extra_metrics(batches),
                on_step=[watchdog(stall_timeout), lambda *_: still_held(), *job.hooks(writer, total_steps, meta)],
            )
            writer.curves(job.lines)
    return Result(int(state.step), workdir, dict(writer.last))


def watchdog(seconds: float) -> leaving.Watchdog:
    """Return the hook that stops a run of several processes when no step ends for some seconds (0: never)."""
    return leaving.Watchdog(seconds if jax.process_count() > 1 else 0, leaving.TRY_AGAIN)


def _digest(names: Sequence[str]) -> str:
    """Return a text that differs for other names or another order; "" for no names."""
    return f"{zlib.crc32(chr(10).join(names).encode('utf-8', 'surrogateescape')):08x}" if names else ""


def _contents(job: Job) -> int:
    """Return a number that differs for images that were all made anew: of a few, for all would be read for hours."""
    number = 0
    for index in range(0, job.num_images, max(1, -(-job.num_images // _LOOKED_INTO))):
        number = zlib.crc32(job.stored(index), number)
    return number


def _may_go_on(job: Job, checkpoints: Any, images: dict, total_steps: int) -> bool:
    """Say whether there is a run to go on with; refuse to go on with one that this job does not fit."""
    reached, workdir = checkpoints.latest_step(), checkpoints.directory.parent
    if reached is None:
        return False
    _compare_images(checkpoints.latest_meta().get("images"), images, job.place, workdir)
    if reached > total_steps:
        raise ConfigError(
            f"{workdir} is at step {reached} already, beyond the {total_steps} steps that are asked for: ask for more "
            "(steps, epochs), or use another work directory"
        )
    return True


def _compare_images(before: dict | None, now: dict, place: str, workdir: AnyPath) -> None:
    """Refuse other images than the run had: its epochs, learning rates and order of samples would be others. Of images with
    the same names and other contents it is only said: the run can go on with them.

    Args:
      before: what the checkpoint says; None for one of an older version, which says nothing.

    Raises:
      ConfigError: naming both numbers of images.
    """
    if before is None:
        return
    # "" is what shards had before their images had names.
    if before.get("number") == now["number"] and before.get("names") in ("", now["names"]):
        if before.get("contents", now["contents"]) != now["contents"]:
            logging.warning(
                "%s: the images have the names that they had, but not the contents that they had at the last checkpoint; "
                "from here on the run is another one than with the images as they were",
                place,
            )
        return
    what = f"{before['number']:,d} images when the run began, {now['number']:,d} now"
    if before["number"] == now["number"]:
        what = f"the {now['number']:,d} images have other names than when the run began"
    raise ConfigError(
        f"{place}: {what}. Put back the images that it had (is a disk not mounted?); or start another run from this one, "
        f"--config.init.checkpoint={workdir} with another work directory"
    )


def _overview(job: Job, state: Any, first: First, workdir: AnyPath, length: str) -> None:
    """Say in a few lines what is about to run; write the parameters and the config into `overview.txt`."""
    if jax.process_index():
        return
    config, count = job.config, sum(x.size for x in jax.tree.leaves(state.params))
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    lines = [
        f"images   {job.num_images:,d} in {job.place}",
        f"model    {settings.describe_model(config)}, {count:,d} parameters",
        f"devices  {devices}{processes}",
        f"steps    {length}, batch {config.batch_size}",
        f"weights  {first.origin}",
        f"output   {workdir} (overview.txt: parameters and config)",
    ]
    _say("\n".join(lines))
    if first.resumed:  # the table of what was loaded stays
        with contextlib.suppress(FileNotFoundError):
            lines = [(workdir / "overview.txt").read_bytes().decode("utf-8", "replace"), *lines]
        _write(workdir / "overview.txt", "\n".join(lines))
        return
    table = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    parts = ["\n".join(lines), first.details, table, str(config)]
    _write(workdir / "overview.txt", "\n\n".join(part for part in parts if part))


def _write(path: AnyPath, text: str) -> None:
    with save_as(path) as file:
        file.write_bytes(f"{text}\n".encode("utf-8", "backslashreplace"))  # names of files need not be text


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
