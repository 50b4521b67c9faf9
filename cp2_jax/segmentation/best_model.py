"""What is known of a run's best model: what was saved with it, and the score that it got since by other images."""

import contextlib
import json

import jax

from cp2_jax.paths import AnyPath, save_json
from cp2_jax.runs.checkpoints import newest_meta

# Beside the step's own files, whose checksums stay what they are; it goes where the step goes.
_SCORED = "scored_anew.json"


def about(step: AnyPath) -> dict:
    """Return the meta of a best model, with the newest `mean_iou` and `split_digest`; {} if it cannot be read.

    Args:
      step: its directory, `WORKDIR/best/STEP`.
    """
    found = newest_meta([step])
    with contextlib.suppress(OSError, ValueError, TypeError):
        found |= json.loads((step / _SCORED).read_text("utf-8"))
    return found


def score_anew(step: AnyPath, mean_iou: float, split_digest: str) -> None:
    """Remember the score of a best model by other images than it was chosen by. All processes call it, the first writes.

    Raises:
      OSError, BucketError: it cannot be written.
    """
    if jax.process_index() == 0:
        save_json(step / _SCORED, {"mean_iou": mean_iou, "split_digest": split_digest})
