"""The line that a run shows while it trains: at most 80 columns, step and time left first, then what matters most."""

import math
from collections.abc import Mapping

from cp2_jax.lines import WIDTH

# Name of a metric → what the line calls it, in the order in which they are given room. Shares are shown in percent.
_SHARES = {
    "miou": "mIoU",
    "mean_accuracy": "class accuracy",
    "evaluation_pixel_accuracy": "pixel accuracy",
    "pixel_accuracy": "pixels right",
    "accuracy_instance": "instance right",
    "accuracy_dense": "dense right",
    "probe/output_auc": "probe: separates",
    "probe/output_retrieval": "finds",
    "probe/backbone_auc": "backbone separates",
    "probe/backbone_retrieval": "backbone finds",
}
_NUMBERS = {"probe/output_effective_rank": "rank", "feature_std": "spread", "learning_rate": "lr"}


def line(step: int, total: int, values: Mapping[str, float], eta: float, width: int = WIDTH) -> str:
    """Return one line on the state of a run, e.g. `step 1200/250200  eta 3:12:05  loss 6.21 (instance 5.8, dense 2.1)`.

    Args:
      step, total: number of finished steps, and of all.
      values: the latest metrics by name; those that are not known here, and those for which no room is left, are not shown
        (`metrics.jsonl` has them all).
      eta: seconds that are left; not finite where it is not known yet.
      width: the number of characters that the line may have. Step and time left are always shown.
    """
    shown = f"step {step}/{total}  eta {clock(eta)}"
    for forms in _parts(values):
        shown += next((f"  {form}" for form in forms if len(shown) + 2 + len(form) <= width), "")
    return shown


def clock(seconds: float) -> str:
    """Return a time as hours:minutes:seconds, "?" if it is not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def compiling(arrays: int) -> str:
    """Return the line to show while the step is compiled.

    The time is a rule of thumb, 10 s and 0.15 s for each array of parameters. Measured (tracing included): on two
    CPU cores 38 s for ResNet-50 + ASPP (181 arrays), 35 s for ViT-S + ASPP (170), 21 s for the demo's network (55); with an
    H200 35 to 44 s and 21 to 25 s for the first two.

    Args:
      arrays: how many arrays of parameters the network has.
    """
    seconds = 10 + 0.15 * arrays
    return f"compiling (about {round(seconds, -1 if seconds > 30 else 0):.0f} s, less if this was compiled before)"


def _parts(values: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Return what the line may say, the most important first; each part in one or two forms, the longest first."""
    parts = [_losses(values)]
    if "time/images_per_second" in values:
        parts.append((f"{_number(values['time/images_per_second'])} img/s",))
    if (waiting := values.get("time/input_wait_share", 0.0)) > 0.05:
        parts.append((f"waits for input {waiting:.0%}",))
    parts += [(f"{name} {_percent(values[key])}",) for key, name in _SHARES.items() if key in values]
    return parts + [(f"{name} {_number(values[key])}",) for key, name in _NUMBERS.items() if key in values]


def _losses(values: Mapping[str, float]) -> tuple[str, ...]:
    if "loss" not in values:
        return ()
    loss = f"loss {_number(values['loss'])}"
    terms = [
        f"{name.removeprefix('loss_')} {_number(value, 2)}" for name, value in values.items() if name.startswith("loss_")
    ]
    return (f"{loss} ({', '.join(terms)})", loss) if terms else (loss,)


def _number(value: float, digits: int = 3) -> str:
    """Write a number with `digits` significant digits, whole numbers in full."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}" if abs(value) < 1e6 else f"{value:.1e}"
    return f"{value:.{digits}g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%" if math.isfinite(share) else str(share)
