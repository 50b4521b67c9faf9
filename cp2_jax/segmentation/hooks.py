"""Evaluation in the course of a finetuning run; the best model is kept."""

from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from cp2_jax.paths import AnyPath, at
from cp2_jax.runs import bucket_steps, distributed, mesh
from cp2_jax.runs.bucket_checkpoints import BucketCheckpoints, open_checkpoints
from cp2_jax.runs.checkpoints import CheckpointError, Checkpoints, first_line, read, read_variables
from cp2_jax.runs.loop import Finished
from cp2_jax.runs.writers import Writer
from cp2_jax.segmentation import best_model
from cp2_jax.segmentation.evaluation import Evaluator
from cp2_jax.segmentation.reports import report


class Periodic:
    """A hook of `loop.fit`: evaluates every so many steps and after the last, and keeps the best model.

    The best, by mean IoU, lies in `workdir/best`, as variables that `checkpoints.read_variables` reads, with the score
    in its meta; a resumed run goes on comparing with it. (A damaged one is set aside; where the images to evaluate are
    others, it is scored anew.) The pictures of each evaluation replace the files of the one before, and stay in
    TensorBoard; the table of the last one is shown and written. With `patience`, the run ends when so many evaluations in
    a row have found nothing better.

    Raises:
      Finished: when it is called and patience is at its end; `loop.fit` takes it.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        every: int,
        total_steps: int,
        writer: Writer,
        workdir: str | AnyPath,
        meta: dict,
        patience: int = 0,
    ):
        self._evaluator, self._every, self._total, self._writer = evaluator, every, total_steps, writer
        self._workdir, self._meta, self._patience = at(workdir), meta, patience
        self._checkpoints = open_checkpoints(self._workdir / "best", keep=1)
        self.best = _best_so_far(self._checkpoints)
        if self._known().get("split_digest", evaluator.split.digest) != evaluator.split.digest:
            self._score_again()

    def _known(self) -> dict:
        step = self._checkpoints.latest_step()
        return {} if step is None else best_model.about(self._checkpoints.directory / str(step))

    def _score_again(self) -> None:
        """Score the best model by the images that there are now: scores of others do not compare."""
        logging.warning(
            "the images to evaluate are others than those that the best model so far, of step %s, was chosen by; it is "
            "scored anew",
            self._checkpoints.latest_step(),
        )
        variables, _ = read_variables(self._workdir / "best")
        placed = jax.device_put(variables, mesh.replicated(self._evaluator.device_mesh))
        self.best = self._evaluator(placed).scores.mean_iou
        step = self._checkpoints.directory / str(self._checkpoints.latest_step())
        best_model.score_anew(step, self.best, self._evaluator.split.digest)

    def __call__(self, number: int, state: Any) -> None:
        if number % self._every and number != self._total:
            return
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        # With `shard_state` each device has its share: gathered once, not for each batch of images.
        variables = mesh.gathered(self._evaluator.device_mesh, variables)
        result = self._evaluator(variables)
        scores = result.scores
        values = {"miou": scores.mean_iou, "mean_accuracy": scores.mean_accuracy}
        values |= {"evaluation_pixel_accuracy": scores.pixel_accuracy, "time/evaluation_seconds": result.seconds}
        self._writer.scalars(number, values)
        # The loop will stop at the next look at a loss; until then a broken model must not count as the best.
        finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))
        # Resumed before the step of the best: that one stays, and is evaluated again in its turn.
        passed = number > (self._checkpoints.latest_step() or 0)
        if scores.mean_iou > self.best and finite and passed:
            self.best = scores.mean_iou
            about = {"step": number, "mean_iou": self.best, "split_digest": self._evaluator.split.digest}
            self._checkpoints.save(number, variables, self._meta | about)
            self._checkpoints.wait()
        reason = ended(number, self._checkpoints.latest_step() or 0, self._every, self._patience)
        if number == self._total or reason:
            self._writer.text(report(result, self._evaluator.names))
            extra = {"checkpoint": str(self._workdir), "step": number}
            extra |= {"best_mean_iou": self.best, "best_step": self._checkpoints.latest_step()}
            self._evaluator.write_scores(self._workdir, result, extra)
        for name, picture in self._evaluator.draw(result, variables).items():
            self._writer.image(number, f"evaluation_{name}", picture, numbered=False)
        if reason:
            self._writer.text(reason)
            raise Finished(reason)


def _best_so_far(kept: Checkpoints | BucketCheckpoints) -> float:
    """Return the mean IoU of the best model so far, -1 if there is none. One that is damaged is set aside, for the run
    itself can go on without it; all processes call this."""
    while (step := kept.latest_step()) is not None:
        score, problem = -1.0, ""
        try:
            meta = read(kept.directory / str(step))[1]
            score = float((meta | best_model.about(kept.directory / str(step)))["mean_iou"])
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            problem = first_line(error)
        if not distributed.any_of(bool(problem)):
            return score
        kept.set_aside(kept.directory / str(step), problem or "another process cannot read it")
    return -1.0


def ended(step: int, best: int, every: int, patience: int) -> str:
    """Return why a run ends after a step, because too many evaluations have found nothing better; "" if it does not.

    Args:
      step: number of finished steps.
      best: the step of the best model, 0 if there is none.
      every: steps between evaluations.
      patience: number of evaluations, see `TuningOptions`; 0: never.
    """
    if not patience or step % every or step - best < patience * every:
        return ""
    return f"ended after step {step}: no better mean IoU in {patience} evaluations since step {best} (tuning.patience)"


def best_step(workdir: str | AnyPath) -> int:
    """Return the step of a run's best model, 0 if it has none."""
    return max(map(int, bucket_steps.complete(at(workdir) / "best")), default=0)
