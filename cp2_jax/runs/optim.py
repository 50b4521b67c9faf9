"""Learning-rate schedules and optimisers, made of optax; equal to PyTorch's SGD and AdamW step for step."""

import dataclasses
from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Float

from cp2_jax.options import at_least_0, from_section, one_of, positive, require, share, whole

# The names that `optimizer.schedule` may have; those of `optimizer.name` are in `OPTIMIZERS`, below.
SCHEDULES = ("cosine", "cosine_by_epoch", "poly", "constant")


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """The section `optimizer` of a config, checked.

    Attributes:
      name: in `OPTIMIZERS`.
      learning_rate: its highest value.
      momentum: of SGD.
      weight_decay: on every trained parameter.
      schedule: in `SCHEDULES`, see `schedule`.
      warmup_steps: steps in which the rate rises from 0; the paper has none.
      power, min_learning_rate: of the schedule "poly".

    Raises:
      ConfigError: naming the key, its value and what would work.
    """

    name: str = "sgd"
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup_steps: int = 0
    power: float = 0.9
    min_learning_rate: float = 0.0

    from_config = from_section("optimizer")

    def __post_init__(self):
        one_of("optimizer.name", self.name, OPTIMIZERS)
        one_of("optimizer.schedule", self.schedule, SCHEDULES)
        positive("optimizer.learning_rate", self.learning_rate)
        positive("optimizer.power", self.power)
        at_least_0("optimizer.weight_decay", self.weight_decay)
        whole("optimizer.warmup_steps", self.warmup_steps)
        at_least_0("optimizer.warmup_steps", self.warmup_steps)
        at_least_0("optimizer.min_learning_rate", self.min_learning_rate)
        share("optimizer.momentum", self.momentum)
        fix = f"must not be above optimizer.learning_rate={self.learning_rate}"
        good = self.schedule != "poly" or self.min_learning_rate <= self.learning_rate
        require(good, "optimizer.min_learning_rate", self.min_learning_rate, fix)


def schedule(options: OptimizerOptions, total_steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning rate as a function of the number of finished steps.

    Args:
      options: an `OptimizerOptions`, or the section of a config that has its fields. Its `schedule` is "cosine" (per step),
        "cosine_by_epoch" (the original: constant within an epoch, main.py:370-374), "poly" (MMSegmentation's finetuning:
        power and minimum), or "constant". Before it come `warmup_steps`, linear from 0.
      total_steps: length of the whole run.
      steps_per_epoch: only "cosine_by_epoch" uses it.

    Raises:
      KeyError: for an unknown schedule.
    """
    peak, warmup = options.learning_rate, options.warmup_steps
    steps = max(1, total_steps - warmup)
    # An epoch that is begun counts: were it rounded off, its steps would have a rate of 0.
    epochs = max(1, -(-total_steps // steps_per_epoch))
    by_epoch = optax.cosine_decay_schedule(peak, epochs)
    after_warmup = {
        "cosine": optax.cosine_decay_schedule(peak, steps),
        "cosine_by_epoch": lambda step: by_epoch((step + warmup) // steps_per_epoch),
        "poly": optax.polynomial_schedule(peak, options.min_learning_rate, options.power, steps),
        "constant": optax.constant_schedule(peak),
    }[options.schedule]
    if not warmup:
        return after_warmup
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after_warmup], [warmup])


def make(options: OptimizerOptions, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Return the optimiser.

    "sgd": PyTorch's, weight decay added to the gradient before the momentum, on every trained parameter, batch-norm
    scales and biases included (paper_vs_code item 11). "adamw": decoupled decay, betas 0.9 and 0.999.

    Args:
      options: an `OptimizerOptions`, or the section of a config that has its fields.
      learning_rate: from `schedule`.

    Raises:
      KeyError: for an unknown name.
    """
    return OPTIMIZERS[options.name](options, learning_rate)


def scaled(optimizer: optax.GradientTransformation, factor: Callable[[str], float]) -> optax.GradientTransformation:
    """Return an optimiser whose learning rate, and with it AdamW's decay, is multiplied for each parameter.

    Args:
      optimizer: of `make`.
      factor: from a parameter's path, such as "head/aspp_0/conv/kernel", to its factor; one with 0 is not trained and has
        no optimiser state.
    """

    def factors(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: factor("/".join(key.key for key in path)), tree)

    def multiply(updates, _):
        return jax.tree.map(lambda update, by: update * by, updates, factors(updates))

    def kinds(params):
        return jax.tree.map(lambda by: "trained" if by else "frozen", factors(params))

    trained = optax.chain(optimizer, optax.stateless(multiply))
    return optax.multi_transform({"trained": trained, "frozen": optax.set_to_zero()}, kinds)


def minimize(
    loss: Callable[[Float[Array, "..."]], Float[Array, ""]], start: Float[Array, "..."], steps: int
) -> Float[Array, "..."]:
    """Return where L-BFGS finds the minimum of a convex function: no chance is involved, and no rate has to be chosen.

    Args:
      loss: array → scalar.
      start: where to begin.
      steps: how many, with as many values of the function as each line search takes.
    """
    optimizer, value_and_grad = optax.lbfgs(), optax.value_and_grad_from_state(loss)

    def step(carry, _):
        at, state = carry
        value, gradient = value_and_grad(at, state=state)
        updates, state = optimizer.update(gradient, state, at, value=value, grad=gradient, value_fn=loss)
        return (optax.apply_updates(at, updates), state), None

    (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    return found


def _sgd(options: OptimizerOptions, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(options.weight_decay)
    return optax.chain(decay, optax.sgd(learning_rate, momentum=options.momentum))


def _adamw(options: OptimizerOptions, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=options.weight_decay)


# By their name in `optimizer.name`; docs/extending.md says how to add one.
OPTIMIZERS: dict[str, Callable[[OptimizerOptions, optax.Schedule], optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}
