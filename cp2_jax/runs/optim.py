"""Learning-rate schedules and optimisers, made of optax; equal to PyTorch's SGD and AdamW step for step."""

import optax
from ml_collections import ConfigDict


def schedule(config: ConfigDict, total_steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning rate as a function of the number of finished steps.

    Args:
      config: `config.optimizer`, with
        schedule: "cosine" (per step), "cosine_by_epoch" (the original: constant within an epoch, main.py:370-374),
          "poly" (MMSegmentation's finetuning: power and minimum), or "constant";
        learning_rate, warmup_steps (linear from 0; the paper has none), power, min_learning_rate.
      total_steps: length of the whole run.
      steps_per_epoch: used by "cosine_by_epoch" alone.

    Raises:
      KeyError: for an unknown schedule.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    steps = max(1, total_steps - warmup)
    epochs = max(1, round(total_steps / steps_per_epoch))
    by_epoch = optax.cosine_decay_schedule(peak, epochs)
    after_warmup = {
        "cosine": optax.cosine_decay_schedule(peak, steps),
        "cosine_by_epoch": lambda step: by_epoch((step + warmup) // steps_per_epoch),
        "poly": optax.polynomial_schedule(peak, config.min_learning_rate, config.power, steps),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if not warmup:
        return after_warmup
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after_warmup], [warmup])


def make(config: ConfigDict, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Return the optimiser.

    "sgd": PyTorch's, weight decay added to the gradient before the momentum, on every trained parameter, batch-norm
    scales and biases included (paper_vs_code item 11). "adamw": decoupled decay, betas 0.9 and 0.999.

    Args:
      config: `config.optimizer` with name, momentum (SGD), weight_decay.

    Raises:
      KeyError: for an unknown name.
    """
    return {
        "sgd": lambda: optax.chain(
            optax.add_decayed_weights(config.weight_decay), optax.sgd(learning_rate, momentum=config.momentum)
        ),
        "adamw": lambda: optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=config.weight_decay),
    }[config.name]()
