"""What the paper's finetuning does not do and users ask for, all off by default: the section `tuning` of a config."""

import dataclasses
from collections.abc import Callable

from cp2_jax.models.network import Network
from cp2_jax.options import at_least_0, from_section, is_number, positive, require, true_or_false, whole


@dataclasses.dataclass(frozen=True)
class TuningOptions:
    """The fields of `config.tuning`.

    Attributes:
      freeze_backbone: the backbone keeps its weights and, in its batch norms, its running averages.
      head_rate: the learning rate of head and classifier, as a multiple of `optimizer.learning_rate`.
      layer_decay: the learning rate of each layer of a ViT is that of the layer above times this (BEiT: 0.65); 1: the same.
        As in BEiT, a last norm counts with the head: it has the whole rate, the last block this much of it.
      class_weights: of each class in the cross entropy; empty: all the same.
      dice: weight of the Dice loss beside the cross entropy; 0: none.
      patience: the run ends when so many evaluations in a row have found no better mean IoU; 0: never.

    Raises:
      ConfigError: naming the key, its value and what would work.
    """

    freeze_backbone: bool = False
    head_rate: float = 1.0
    layer_decay: float = 1.0
    class_weights: tuple[float, ...] = ()
    dice: float = 0.0
    patience: int = 0

    from_config = from_section("tuning", optional=True)  # configs of before have none

    def __post_init__(self):
        true_or_false("tuning.freeze_backbone", self.freeze_backbone)
        positive("tuning.head_rate", self.head_rate)
        fix = "must be above 0 and at most 1, such as 0.65; 1 gives all layers the same rate"
        good = is_number(self.layer_decay) and 0 < self.layer_decay <= 1
        require(good, "tuning.layer_decay", self.layer_decay, fix)
        good = all(is_number(weight) and weight >= 0 for weight in self.class_weights)
        good = good and (not self.class_weights or sum(self.class_weights) > 0)
        fix = "give one number of 0 or more for each class, not all 0, or none: ()"
        require(good, "tuning.class_weights", self.class_weights, fix)
        at_least_0("tuning.dice", self.dice)
        whole("tuning.patience", self.patience)
        at_least_0("tuning.patience", self.patience)

    def check(self, network: Network, eval_every: int) -> None:
        """Check the options against the rest of the config.

        Args:
          network: the run's.
          eval_every: steps between evaluations.

        Raises:
          ConfigError: naming the key, its value and what would work.
        """
        weights, classes = self.class_weights, network.num_classes
        fix = f"give a weight for each of the {classes} classes, or none: ()"
        require(len(weights) in (0, classes), "tuning.class_weights", weights, fix)
        if self.layer_decay != 1:
            fix = f"a {network.backbone_name} has no order of layers for it; use 1, or a ViT"
            require(network.backbone.layers is not None, "tuning.layer_decay", self.layer_decay, fix)
            fix = "the backbone is frozen (tuning.freeze_backbone); use 1"
            require(not self.freeze_backbone, "tuning.layer_decay", self.layer_decay, fix)
        fix = "needs evaluations in the course of the run: set eval_every above 0"
        require(self.patience == 0 or eval_every > 0, "tuning.patience", self.patience, fix)

    def rates(self, network: Network) -> Callable[[str], float] | None:
        """Return the factor of a parameter's learning rate by its path ("backbone/…"), or None if all are 1."""
        if not self.freeze_backbone and self.head_rate == self.layer_decay == 1:
            return None
        count, layer = network.backbone.layers(network.backbone_options) if self.layer_decay != 1 else (0, None)

        def factor(path: str) -> float:
            part, _, rest = path.partition("/")
            if part != "backbone":
                return self.head_rate
            if self.freeze_backbone:
                return 0.0
            return 1.0 if layer is None else self.layer_decay ** (count - 1 - layer(rest))

        return factor
