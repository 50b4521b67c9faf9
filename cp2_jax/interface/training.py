"""Pretraining and finetuning as functions: a folder in, a run out."""

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from cp2_jax import config_files
from cp2_jax.convert.origins import origin
from cp2_jax.data.images.sources import source_of
from cp2_jax.interface import converting, kinds, overrides, processes, ranges
from cp2_jax.lines import wrap
from cp2_jax.models.backbones import BACKBONES, finetuning_decay
from cp2_jax.models.heads import HEADS
from cp2_jax.options import ConfigError, flatten
from cp2_jax.paths import AnyPath, at, is_bucket
from cp2_jax.runs import sizes
from cp2_jax.runs.checkpoints import read_variables
from cp2_jax.runs.settings import saved_config


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run. It is a path: other functions take it as a checkpoint.

    Attributes:
      path: the work directory.
      steps: number of finished steps.
      metrics: the last value of each metric by name, as in `metrics.jsonl`.
    """

    path: AnyPath
    steps: int
    metrics: Mapping[str, float] = dataclasses.field(repr=False)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def pictures(self) -> list[AnyPath]:
        """The pictures that the run has drawn, by name."""
        return sorted((self.path / "pictures").glob("*.png"))


def pretrain(
    images: str | os.PathLike,
    out: str | os.PathLike,
    *,
    checkpoint: str | os.PathLike | None = None,
    model: str | Mapping | None = None,
    config: str | os.PathLike | ConfigDict | None = None,
    changes: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Run:
    """Pretrain a segmentation model with CP2 on images without labels, or go on where `out` stands.

    Example:
      run = cp2_jax.pretrain("photos", "runs/photos", checkpoint="moco_v2_800ep_pretrain.pth.tar", epochs=50)

    Args:
      images: folder of images, nested or flat; or tar shards or Parquet files (docs/data.md).
      out: work directory; run again with the same one, it resumes.
      checkpoint: weights to start from (Quick Tuning): a run, a converted checkpoint, or somebody else's file, which is
        converted into `out/converted`. Without it, from scratch. The model is the checkpoint's.
      model: variants of `configs/pretrain.py`, such as "vit" or "vit,fcn"; or a mapping of keys of `config.model`.
      config: name or path of another config than `pretrain:small`, whose sizes fit the data (docs/small_data.md), or a
        config.
      changes, keys: values of the config, by key: `epochs=50`, `batch_size=32`, `loss={"alpha": 0.1}`,
        `changes={"optimizer.learning_rate": 0.01}`.

    Returns:
      The run.

    Raises:
      ConfigError: a key or value that cannot be, or a work directory that holds another run.
      SourceError: there are no images.
      CheckpointError, CheckpointFormatError: the checkpoint cannot be read, or does not fit.
      WriteError, Busy: `out` cannot be written, or another run is at work in it.
      NonFiniteLoss: the loss became infinite; the last good state is saved.
      Preempted: stopped by a signal, and saved.
    """
    settings = pretraining_config(images, out, checkpoint, model, config)
    _change(settings, out, model, overrides.merged(changes, keys))
    return run_pretraining(settings, out, python=True)


def finetune(
    data: str | os.PathLike,
    /,  # so that `data={"crop_size": …}` can change the config's section
    out: str | os.PathLike,
    *,
    checkpoint: str | os.PathLike | None = None,
    model: str | Mapping | None = None,
    config: str | os.PathLike | ConfigDict | None = None,
    changes: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Run:
    """Finetune a model on images with masks, or go on where `out` stands; the score is `run.metrics["miou"]`.

    Example:
      run = cp2_jax.finetune("my_data", "runs/mine", checkpoint="runs/photos", steps=2000)

    Args:
      data: folder with images/{train,val}, labels/{train,val} and classes.txt (docs/data.md).
      out: work directory; run again with the same one, it resumes.
      checkpoint: a pretraining run, a converted checkpoint, or somebody else's file, which is converted into
        `out/converted`. Without it, from scratch. The model is the checkpoint's.
      model, config, changes, keys: see `pretrain`; the config is `finetune_folder:small` if none is named.

    Returns:
      The run.

    Raises:
      ConfigError, SourceError, CheckpointError, CheckpointFormatError, WriteError, Busy, NonFiniteLoss, Preempted: as there
      SegmentationError: images and masks do not belong together, or masks do not fit the classes.
    """
    settings = finetuning_config(data, out, checkpoint, model, config)
    _change(settings, out, model, overrides.merged(changes, keys))
    return run_finetuning(settings, out, python=True)


def pretraining_config(images, out, checkpoint=None, model=None, config=None) -> ConfigDict:
    """Return the config of `pretrain`, before single keys are changed; for the arguments see there.

    Raises:
      ConfigError, CheckpointError, CheckpointFormatError: see `pretrain`.
      SourceError: `images` is something else.
    """
    kinds.refuse_a_model(images)
    settings = _base(config, "quick_tune:small" if kinds.is_given(checkpoint) else "pretrain:small", model, "pretrain")
    return _placed(settings, images, out, checkpoint, model)


def finetuning_config(data, out, checkpoint=None, model=None, config=None) -> ConfigDict:
    """Return the config of `finetune`, before single keys are changed; for the arguments see there.

    Raises:
      ConfigError, CheckpointError, CheckpointFormatError: see `finetune`.
      SourceError: `data` is something else.
    """
    kinds.refuse_a_model(data, "a folder of labelled images")
    settings = _base(config, "finetune_folder:small", model, "finetune")
    return _placed(settings, data, out, checkpoint, model)


def run_pretraining(config: ConfigDict, out: str | os.PathLike, python: bool = False, **options) -> Run:
    """Run a pretraining config, say what to do next, and return the run.

    Args:
      config, options: of `pretraining.run.train`.
      out: work directory.
      python: say it as a line of Python instead of one of the command line.
    """
    from cp2_jax.pretraining import run

    kinds.refuse_inside(config.data.path, out)
    if config.data.source == "folder" and not config.data.list and not (at(out) / "config.json").is_file():  # a new run
        kinds.refuse_masks(config.data.path)
    with processes.ready():
        result = run.train(config, at(out), **options)
    if not options.get("profile"):
        run_at = processes.relative(result.workdir)
        typed = f"cp2 finetune DATA WORKDIR --checkpoint {processes.quoted(run_at)}"
        _finished(result, f'cp2_jax.finetune(DATA, OUT, checkpoint="{run_at}")' if python else typed)
    return Run(result.workdir, result.steps, result.metrics)


def run_finetuning(config: ConfigDict, out: str | os.PathLike, python: bool = False, **options) -> Run:
    """Run a finetuning config, say what to do next, and return the run; `options` are of `segmentation.run.train`."""
    from cp2_jax.segmentation import run

    kinds.refuse_inside(config.data.path, out, inside=False)
    with processes.ready():
        result = run.train(config, at(out), **options)
    if not options.get("profile"):
        run_at = processes.relative(result.workdir)
        typed = f"cp2 predict {processes.quoted(run_at)} IMAGES OUTPUT"
        _finished(result, f'cp2_jax.load_segmenter("{run_at}").predict(IMAGE).show()' if python else typed)
    return Run(result.workdir, result.steps, result.metrics)


def _finished(result, next_line: str) -> None:
    score = f", mIoU {100 * result.metrics['miou']:.1f}%" if "miou" in result.metrics else ""
    pictures = processes.relative(result.workdir / "pictures")
    print(f"finished: {result.steps} steps{score}; pictures in {pictures}\nnext: {next_line}", flush=True)


def _change(config: ConfigDict, out: str | os.PathLike, model: str | Mapping | None, changes: Mapping) -> None:
    """Give the keys that a caller names their values; what the caller does not name follows the checkpoint."""
    overrides.update(config, changes)
    given = dict(changes) | ({"model": model} if isinstance(model, Mapping) else {})
    settle(config, out, set(flatten(given)))


def settle(config: ConfigDict, out: str | os.PathLike, explicit: Collection[str]) -> None:
    """Make a config's model that of the checkpoint that it starts from, but for what was asked for by name.

    Args:
      config: of a run, with everything that was asked for; changed in place.
      out: the run's work directory. A run that goes on keeps the model that it has.
      explicit: names of the keys that were asked for, such as "model.aspp.dilations".

    Raises:
      CheckpointError: there is no checkpoint.
      ConfigError: the run has no readable config.
    """
    out = at(out)
    if config.kind == "finetune" and "image_size" in explicit and "data.crop_size" not in explicit:
        crop = tuple(config.data.crop_size)
        print(f"mind: image_size is a ViT's for its positions; the crops are data.crop_size={crop}", flush=True)
    if saved := saved_config(out, warn=False):
        if saved.get("init", {}).get("checkpoint") == config.init.checkpoint != "":
            _take(config, saved["model"], explicit, str(out))
            ranges.follow(config, ranges.of_run({"config": saved}), out, explicit)
    elif (source := config.init.checkpoint) and (is_bucket(source) or not pathlib.Path(source).is_file()):
        follow(config, source, explicit, random_head=False)


def follow(
    config: ConfigDict, checkpoint: str | os.PathLike, explicit: Collection[str] = (), random_head: bool = True
) -> None:
    """Make a config's model that of a checkpoint, as far as it describes one; others' heads are left out.

    With `init.head=random` the head stays as the config has it. What is changed is printed, and so is what was asked for
    though the checkpoint has another value.

    Args:
      config: changed in place.
      checkpoint: a run of ours, or a converted checkpoint.
      explicit: names of keys that keep the config's value.
      random_head: where the checkpoint describes no head, let it start at random; without it, such a run is refused.

    Raises:
      CheckpointError: there is no checkpoint.
    """
    _, meta = read_variables(checkpoint)
    found = origin(meta)
    theirs, before = found.model if found else {}, (config.model.backbone, config.init.head)
    _take(config, theirs, explicit, os.fspath(checkpoint))
    ranges.follow(config, ranges.of_run(meta), checkpoint, explicit)
    if random_head and "head" not in theirs:
        config.init.head = "random"
    now = config.model.backbone, config.init.head
    if config.kind == "finetune" and now != before and "optimizer.weight_decay" not in explicit:
        config.optimizer.weight_decay = finetuning_decay(*now)


def _take(config: ConfigDict, theirs: Mapping, explicit: Collection[str], source: str) -> None:
    """Take what makes the network from a checkpoint's `config.model`, and print what that changes."""
    kept = {"backbone", "mean", "std", *BACKBONES}
    if config.init.head == "checkpoint":
        kept |= {"head", *HEADS}
    stated = {key: value for key, value in theirs.items() if key in kept}
    parts = (stated.get("backbone"), stated.get("head"))
    with config.unlocked():  # the configs have no section of a backbone or head that was added
        config.model.update({part: theirs[part] for part in parts if part in theirs and part not in config.model})
    stated = {key: value for key, value in stated.items() if key in config.model}
    before = flatten(config.model)
    wanted = {key: _plain(value) for key, value in flatten(stated).items() if key in before and value is not None}
    if wanted.get("backbone", config.model.backbone) != config.model.backbone and "model.backbone" not in explicit:
        _other_backbone(config, wanted["backbone"], explicit)
    for key, value in wanted.items():
        if f"model.{key}" not in explicit:
            overrides.update(config, {"model": {key: value}})
    used = ("backbone", "head", "mean", "std", f"{config.model.backbone}.", f"{config.model.head}.")
    asked, changed = [], []
    for key, value in wanted.items():
        if key.startswith(used) and _plain(before[key]) != value:
            told = asked if f"model.{key}" in explicit else changed
            told.append(f"model.{key}={value} ({before[key]})")
    for words, found in (("the model is that of", changed), ("mind: the model is not, as asked for, that of", asked)):
        if found:
            line = f"{words} {source} (in brackets: the config's): {', '.join(found)}"
            print("\n".join(wrap(line, cut=True, most=2, rest=" … (all: config.json)")), flush=True)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _other_backbone(config: ConfigDict, backbone: str, explicit: Collection[str]) -> None:
    """Take the optimiser that the paper has for this backbone."""
    pretraining, described = config.kind == "pretrain", BACKBONES[backbone]
    like = config_files.load("pretrain" if pretraining else "finetune_voc").optimizer
    like.update(described.pretrain_optimizer if pretraining else described.finetune_optimizer)
    open_ = {key for key, value in config.optimizer.items() if value == sizes.OPEN}  # chosen later, by the backbone
    kept = open_ | {key.removeprefix("optimizer.") for key in explicit if key.startswith("optimizer.")}
    config.optimizer.update({key: value for key, value in like.items() if key not in kept})


def _base(
    config: str | os.PathLike | ConfigDict | None, default: str, model: str | Mapping | None, kind: str
) -> ConfigDict:
    kinds.refuse_types(model, config)
    found = _named(os.fspath(config) if isinstance(config, os.PathLike) else config, default, model)
    if found.get("kind") != kind:
        what = config if isinstance(config, str) else "this"
        its = f"of `cp2 {found.kind}`" if "kind" in found else "without a kind"
        raise ConfigError(f"{what} is a config {its}, not of `cp2 {kind}`")
    return found


def _named(config: str | ConfigDict | None, default: str, model: str | Mapping | None) -> ConfigDict:
    if isinstance(config, ConfigDict):
        if isinstance(model, str):
            raise ConfigError(f"model={model!r} names variants of a config's file; with a config itself give a mapping")
        return config.copy_and_resolve_references()
    name = config or default
    if isinstance(model, str):
        name = f"{name}{',' if ':' in name else ':'}{model}"
    return config_files.load(name)


def _placed(config: ConfigDict, images, out, checkpoint, model) -> ConfigDict:
    """Say in a config where its images and its checkpoint, which is converted if it has to be, are."""
    kinds.refuse_no_name(out)
    if kinds.is_given(checkpoint):
        config.init.checkpoint = converting.converted(checkpoint, at(out) / "converted")
        follow(config, config.init.checkpoint)
    if images:
        config.data.path = str(images)
        if config.data.source in ("folder", "tfds"):
            config.data.source = "tfds" if kinds.is_tfds(images) else source_of(images)
    if isinstance(model, Mapping):
        overrides.update(config, {"model": model})
    overrides.expand_user(config)
    return config
