"""A finetuned model from its checkpoint, by its own config; what may be changed about that is data and protocol."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from cp2_jax.data.labelled import classes
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.models.network import Network
from cp2_jax.options import ConfigError, flatten
from cp2_jax.paths import AnyPath, at
from cp2_jax.runs import bucket_steps
from cp2_jax.runs.checkpoints import CheckpointError, read_variables
from cp2_jax.runs.settings import check_kind
from cp2_jax.segmentation import best_model
from cp2_jax.segmentation.predictor import check_variables

Adapt = Callable[[ConfigDict], None]

# Sections and keys of a config that say what is tested and how, not which network it is.
_FREE = ("data", "evaluation")
# Keys of `data` of which a test knows nothing, and what says the same of a test.
_OF_TRAINING = {
    "data.split": "data.eval_split",
    "data.limit": "evaluation.limit",
    "data.limit_seed": "",
    "data.resize": "evaluation.resize",
    "data.scale_range": "evaluation.ratios",
    "data.crop_size": "evaluation.window",
    "data.crop_max_ratio": "",
    "data.flip": "evaluation.flip",
    "data.photometric": "",
}
# How the network is computed, and what serves training alone.
_SAME_NETWORK = ("model.dtype", "model.dropout", "model.projection_dim")


@dataclasses.dataclass(frozen=True)
class Saved:
    """A finetuned model.

    Attributes:
      variables: {'params', 'batch_stats'}, NumPy arrays.
      config: of its finetuning, with the changes that were asked for; classes are resolved.
      own: the same without the changes; None if the checkpoint has no config.
      path: of the checkpoint.
      step: number of finished steps, None if it is not known.
      what: one line that says which checkpoint this is, and where the run's best is.
    """

    variables: Any
    config: ConfigDict
    own: ConfigDict | None
    path: AnyPath
    step: int | None
    what: str


def open_saved(
    run: str | AnyPath,
    checkpoint: str | AnyPath | None = None,
    config: ConfigDict | None = None,
    adapt: Adapt | None = None,
) -> Saved:
    """Read a finetuned model and the config that it is to be tested by.

    Args:
      run: a finetuning's work directory, one of its checkpoints, or a converted model.
      checkpoint: which one of the work directory: "newest" (the default), "best", the number of a step, or another path.
      config: its sections `data` and `evaluation` take the place of the run's own; its model must be the run's. For a
        model that has no config of its own, the whole config.
      adapt: changes the run's config in place. It may change data, protocol and precision, not the network.

    Raises:
      CheckpointError: there is no checkpoint, it cannot be read, or it is of a pretraining, which has no classes.
      ConfigError: the config, or a change, is of another network; or there is no config at all.
      SegmentationError: see `data.labelled.classes.resolve`.
    """
    path, word = _place(at(run), checkpoint)
    variables, meta = read_variables(path)
    own = ConfigDict(_tuples(meta["config"])) if "config" in meta else None
    _check_job(path, variables, meta)
    if config is not None:
        check_kind(config, "finetune")
    if own is None and config is None:
        raise ConfigError(
            f"{path} has no config of its own, as a converted model; give `cp2 evaluate` or `cp2 predict` one: "
            "--config finetune_…"
        )
    settled = _settle(own, config, adapt)
    check_variables(settled, variables)
    step = meta.get("iterator", meta).get("next_batch", meta.get("step"))
    what = word.format(step="?" if step is None else step) + _best(run, word)
    return Saved(variables, settled, own, path, step, what)


def _place(run: AnyPath, checkpoint: str | AnyPath | None) -> tuple[AnyPath, str]:
    """Return the path of the checkpoint and what to call it."""
    word = "newest" if checkpoint is None else str(checkpoint)
    if word == "newest":
        return run, "newest checkpoint, step {step}" if (run / "checkpoints").is_dir() else "step {step}"
    if word == "best":
        if not (run / "best").is_dir():
            raise CheckpointError(f"{run} has no best model: no evaluation has been made, or it is no finetuning run")
        return run / "best", "best checkpoint, step {step}"
    if word.isdecimal():
        if not (run / "checkpoints" / word).is_dir():
            steps = list(map(int, bucket_steps.complete(run / "checkpoints")))
            raise CheckpointError(f"{run} has no checkpoint of step {word}; there are {steps or 'none'}")
        return run / "checkpoints" / word, "checkpoint of step {step}"
    if not at(word).exists():
        raise CheckpointError(f"{word} is no checkpoint of {run}: give newest, best, the number of a step, or a path")
    return at(word), "step {step}"


def _best(run: str | AnyPath, word: str) -> str:
    """Return where the best model of the run is, if another was taken."""
    run = at(run)
    best = best_of(run) if word.startswith("newest") else {}
    if not best:
        return ""
    return f" (best: step {best['best_step']}, mIoU {best['best_mean_iou']:.1%}, in {run / 'best'})"


def best_of(run: str | AnyPath) -> dict:
    """Return {"best_mean_iou", "best_step"} of a work directory's best model, or {} if it has none."""
    steps = list(bucket_steps.complete(at(run) / "best").values())
    try:
        meta = best_model.about(steps[-1])  # the arrays are not needed
        return {"best_mean_iou": meta["mean_iou"], "best_step": meta["step"]}
    except (IndexError, KeyError):
        return {}


def _check_job(path: AnyPath, variables: Mapping, meta: Mapping) -> None:
    """Refuse a model without classes."""
    first = f"finetune it first: cp2 finetune DATA WORKDIR --checkpoint {path}"
    if meta.get("kind") == "pretrain":
        raise CheckpointError(f"{path} is of a pretraining run, which has no classes; {first}")
    if "classifier" not in variables["params"]:
        raise CheckpointError(f"{path} has no classifier, only {', '.join(sorted(variables['params']))}; {first}")


def _settle(own: ConfigDict | None, given: ConfigDict | None, adapt: Adapt | None) -> ConfigDict:
    """Return the config to test by."""
    config = (given if own is None else own).copy_and_resolve_references()
    if own is not None and given is not None:
        given = given.copy_and_resolve_references()
        classes.resolve(given)
        differences = network_differences(own.model, given.model)
        if differences:
            raise ConfigError(
                f"the config is of another network than the run: {'; '.join(differences)}. Leave out --config: the run has "
                "its own, and --config.data.… and --config.evaluation.… change what is tested and how"
            )
        config.data, config.evaluation = given.data, given.evaluation
    if adapt is not None:
        before = flatten(config)
        adapt(config)
        _check_changes(before, flatten(config), own)
    classes.resolve(config)
    return config


def refuse_training(keys: Iterable[str]) -> None:
    """Refuse keys of `data` that would change nothing of a test, also where they have the value that they had.

    Raises:
      ConfigError: with the key that says the same of a test.
    """
    for key in keys:
        if key in _OF_TRAINING:
            instead = f"; of a test, {_OF_TRAINING[key]} says that" if _OF_TRAINING[key] else " alone"
            raise ConfigError(f"{key}: this is of training{instead}")


def _check_changes(before: Mapping, after: Mapping, own: ConfigDict | None) -> None:
    """Refuse changes that would make another network, or that change nothing of a test."""
    for key in sorted(key for key in after if before.get(key) != after[key]):
        if key.startswith(tuple(f"{section}." for section in _FREE)) or key in _SAME_NETWORK or _how_computed(key):
            continue
        if own is None and key.startswith(("model.", "image_size")):
            continue
        if key.startswith("model.") or key == "image_size":
            raise ConfigError(
                f"{key}={after[key]} would make another network than the one that was trained, with {before.get(key)}; "
                "leave it out: the checkpoint says what its network is"
            )
        raise ConfigError(f"{key}={after[key]}: this is of training; a test has data.… and evaluation.… to change")


def _how_computed(key: str) -> bool:
    _, _, rest = key.partition("model.")
    section, _, name = rest.partition(".")
    return section in BACKBONES and name in BACKBONES[section].computed_by


def network_differences(theirs: Mapping, ours: Mapping) -> list[str]:
    """Return "model.aspp.dilations=(1, 6) (the run has (1, 12))" for each value in which two models differ.

    Only what makes the network is compared: not the sections of other backbones and heads, nor how it is computed.

    Args:
      theirs: `config.model` of the run.
      ours: of another config.
    """
    found, wanted = (_of_network(Network.from_config(model)) for model in (theirs, ours))
    return [
        f"{key}={wanted.get(key, 'absent')} (the run has {found.get(key, 'absent')})"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key)
    ]


def _of_network(network: Network) -> dict[str, Any]:
    flat = {"model.backbone": network.backbone_name, "model.head": network.head_name}
    flat |= {f"model.{key}": getattr(network, key) for key in ("num_classes", "mean", "std")}
    for name, options in ((network.backbone_name, network.backbone_options), (network.head_name, network.head_options)):
        flat |= {f"model.{name}.{key}": value for key, value in dataclasses.asdict(options).items()}
    return {key: value for key, value in flat.items() if not _how_computed(key)}


def _tuples(value: Any) -> Any:
    """Return plain values with tuples for the lists that JSON made of them."""
    if isinstance(value, Mapping):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
