"""What a checkpoint says of its own model: a run by its config, a converted file by what the converter found."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Origin:
    """The model of a checkpoint.

    Attributes:
      name: of run or file, for messages.
      model: its words for `config.model`, mean and standard deviation of the inputs among them. What a converted checkpoint
        does not state is as CP2 and MMSegmentation have it: the options' defaults.
      image_size: side in pixels that a ViT's position table is made for.
    """

    name: str
    model: Mapping[str, Any]
    image_size: int


def origin(meta: Mapping) -> Origin | None:
    """Return what lies beside the weights of a checkpoint (`checkpoints.read_variables`), or None if it names no model."""
    if meta.get("kind") == "converted":
        model = dict(meta["model"]) | {key: meta["input"][key] for key in ("mean", "std")}
        return Origin(f"{meta['file']} ({meta['format']})", model, model.get("image_size", 224))
    config = meta.get("config")
    return Origin(f"the {meta.get('kind', 'training')} run", config["model"], config["image_size"]) if config else None
