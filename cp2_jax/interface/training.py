"""Pretraining and finetuning as functions: a folder in, a run out."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cp2_jax import config_files
from cp2_jax.interface import converting, kinds, overrides, processes
from cp2_jax.models import backbones
from cp2_jax.options import ConfigError
from cp2_jax.runs.checkpoints import read_variables


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run. It is a path: other functions take it as a checkpoint.

    Attributes:
      path: the work directory.
      steps: number of finished steps.
      metrics: the last value of each metric by name, as in `metrics.jsonl`.
    """

    path: pathlib.Path
    steps: int
    metrics: Mapping[str, float] = dataclasses.field(repr=False)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def pictures(self) -> list[pathlib.Path]:
        """The pictures that the run has drawn, by name."""
        return sorted((self.path / "pictures").glob("*.png"))


def pretrain(
    images: str | os.PathLike,
    out: str | os.PathLike,
    *,
    checkpoint: str | os.PathLike | None = None,
    model: str | Mapping | None = None,
    config: str | ConfigDict | None = None,
    changes: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Run:
    """Pretrain a segmentation model with CP2 on images without labels, or go on where `out` stands.

    Example:
      run = cp2_jax.pretrain("photos", "runs/photos", checkpoint="moco_v2_800ep_pretrain.pth.tar", epochs=50)

    Args:
      images: folder of images, nested or flat.
      out: work directory; run again with the same one, it resumes.
      checkpoint: weights to start from (Quick Tuning): a run, a converted checkpoint, or somebody else's file, which is
        converted into `out/converted`. Without it, from scratch. The model is the checkpoint's.
      model: variants of `configs/pretrain.py`, such as "vit" or "vit,fcn"; or a mapping of keys of `config.model`.
      config: name or path of another config than `pretrain`, or a config.
      changes, keys: values of the config, by key: `epochs=50`, `batch_size=32`, `loss={"alpha": 0.1}`,
        `changes={"optimizer.learning_rate": 0.01}`.

    Returns:
      The run.

    Raises:
      ConfigError: a key or value that cannot be, or a work directory that holds another run.
      SourceError: there are no images.
      CheckpointError, CheckpointFormatError: the checkpoint cannot be read, or does not fit.
      NonFiniteLoss: the loss became infinite; the last good state is saved.
      Preempted: stopped by a signal, and saved.
    """
    settings = pretraining_config(images, out, checkpoint, model, config)
    overrides.update(settings, dict(changes or {}) | keys)
    return run_pretraining(settings, out)


def finetune(
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    checkpoint: str | os.PathLike | None = None,
    model: str | Mapping | None = None,
    config: str | ConfigDict | None = None,
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
      model, config, changes, keys: as of `pretrain`; the config is `finetune_folder` if none is named.

    Returns:
      The run.

    Raises:
      ConfigError, SourceError, CheckpointError, CheckpointFormatError, NonFiniteLoss, Preempted: see `pretrain`.
      SegmentationError: images and masks do not belong together, or masks do not fit the classes.
    """
    settings = finetuning_config(data, out, checkpoint, model, config)
    overrides.update(settings, dict(changes or {}) | keys)
    return run_finetuning(settings, out)


def pretraining_config(images, out, checkpoint=None, model=None, config=None) -> ConfigDict:
    """Return the config of `pretrain`, before single keys are changed; for the arguments see there.

    Raises:
      ConfigError, CheckpointError, CheckpointFormatError: see `pretrain`.
      SourceError: `images` is something else.
    """
    kinds.refuse_a_model(images)
    settings = _base(config, "quick_tune" if checkpoint else "pretrain", model)
    if checkpoint:
        settings.init.checkpoint = converting.converted(checkpoint, pathlib.Path(out, "converted"))
        follow(settings, settings.init.checkpoint)
    return _placed(settings, images, model)


def finetuning_config(data, out, checkpoint=None, model=None, config=None) -> ConfigDict:
    """Return the config of `finetune`, before single keys are changed; for the arguments see there.

    Raises:
      ConfigError, CheckpointError, CheckpointFormatError: see `finetune`.
      SourceError: `data` is something else.
    """
    kinds.refuse_a_model(data, "a folder of labelled images")
    settings = _base(config, "finetune_folder", model)
    if checkpoint:
        settings.init.checkpoint = converting.converted(checkpoint, pathlib.Path(out, "converted"))
        follow(settings, settings.init.checkpoint)
    return _placed(settings, data, model)


def run_pretraining(config: ConfigDict, out: str | os.PathLike, **options) -> Run:
    """Run a pretraining config, say what to do next, and return the run; `options` are of `pretraining.run.train`."""
    from cp2_jax.pretraining import run

    with processes.ready():
        result = run.train(config, pathlib.Path(out).expanduser(), **options)
    if not options.get("profile"):
        _finished(result, f"next: cp2 finetune DATA WORKDIR --checkpoint {processes.relative(result.workdir)}")
    return Run(result.workdir, result.steps, result.metrics)


def run_finetuning(config: ConfigDict, out: str | os.PathLike, **options) -> Run:
    """Run a finetuning config, say what to do next, and return the run; `options` are of `segmentation.run.train`."""
    from cp2_jax.segmentation import run

    with processes.ready():
        result = run.train(config, pathlib.Path(out).expanduser(), **options)
    if not options.get("profile"):
        _finished(result, f"next: cp2 predict {processes.relative(result.workdir)} IMAGES OUTPUT")
    return Run(result.workdir, result.steps, result.metrics)


def _finished(result, next_line: str) -> None:
    score = f", mIoU {100 * result.metrics['miou']:.1f}%" if "miou" in result.metrics else ""
    pictures = processes.relative(result.workdir / "pictures")
    print(f"finished: {result.steps} steps{score}; pictures in {pictures}\n{next_line}", flush=True)


def follow(config: ConfigDict, checkpoint: str | os.PathLike) -> None:
    """Make a config's model that of a checkpoint, as far as it describes one; others' heads are left out.

    Args:
      config: changed in place.

    Raises:
      CheckpointError: there is no checkpoint.
    """
    _, meta = read_variables(checkpoint)
    theirs = meta.get("model") or meta.get("config", {}).get("model") or {}
    inputs = meta.get("input") or theirs
    kept = ("backbone", "head", "resnet", "vit", "aspp", "fcn", "mean", "std")
    stated = {key: value for key, value in dict(theirs, **inputs).items() if key in kept}
    if "backbone" in stated and stated["backbone"] != config.model.backbone:
        _other_backbone(config, stated["backbone"])
    for key, value in stated.items():
        overrides.update(config, {"model": {key: _known(value, config.model[key])}})
    if "head" not in stated:
        config.init.head = "random"
        if config.kind == "finetune":
            config.optimizer.weight_decay = backbones.finetuning_decay(config.model.backbone, "random")


def _known(value: Any, ours: Any) -> Any:
    return {k: v for k, v in value.items() if k in ours} if isinstance(value, Mapping) else value


def _other_backbone(config: ConfigDict, backbone: str) -> None:
    """Take the optimiser that the paper has for this backbone."""
    variants = {"vit": "vit", "resnet": "r50"}
    like = config_files.load(f"{'pretrain' if config.kind == 'pretrain' else 'finetune_voc'}:{variants[backbone]}")
    config.optimizer.update(like.optimizer)


def _base(config: str | ConfigDict | None, default: str, model: str | Mapping | None) -> ConfigDict:
    if isinstance(config, ConfigDict):
        if isinstance(model, str):
            raise ConfigError(f"model={model!r} names variants of a config's file; with a config itself give a mapping")
        return config.copy_and_resolve_references()
    name = config or default
    if isinstance(model, str):
        name = f"{name}{',' if ':' in name else ':'}{model}"
    return config_files.load(name)


def _placed(config: ConfigDict, images, model) -> ConfigDict:
    if images:
        config.data.path = os.fspath(images)
        if config.data.source in ("folder", "tfds"):
            config.data.source = "tfds" if kinds.is_tfds(images) else "folder"
    if isinstance(model, Mapping):
        overrides.update(config, {"model": model})
    overrides.expand_user(config)
    return config
