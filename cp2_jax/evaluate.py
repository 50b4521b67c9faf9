"""Scores over a whole labelled split, from one confusion matrix, at each image's own size."""

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cp2_jax import confusion, mesh, pictures
from cp2_jax.checkpoints import Checkpoints, read
from cp2_jax.data.segmentation import Examples, SegmentationError, open_examples
from cp2_jax.inference import Predictor, check_variables, make_predictor, save_class_map
from cp2_jax.settings import ConfigError
from cp2_jax.writers import Writer


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    matrix: int64 [classes, classes], rows = truth. image_miou: float [images], each image's own mean IoU (nan where
    nothing is labelled). compilations: network programs compiled on the way. seconds: of all, and of waiting for input.
    """

    matrix: np.ndarray
    image_miou: np.ndarray
    compilations: int
    seconds: float
    waited: float

    @property
    def scores(self) -> confusion.Scores:
        return confusion.scores(self.matrix)


def plan(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Return batches of image indices, each of one size; -1 fills up the last batch of a size.

    A full batch everywhere means one compiled program for each size, and that every image runs in the same one.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(tuple(size), []).append(index)
    batches = []
    for _, members in sorted(groups.items()):
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            batches.append(batch + [-1] * (batch_size - len(batch)))
    return batches


def _host_batch(examples: Examples, rows: Sequence[int], fallback: int, predictor: Predictor):
    """Return (views, labels) of the rows; a row of -1 shows the image `fallback`, with nothing labelled."""
    loaded = [examples.load(index if index >= 0 else fallback) for index in rows]
    views = [np.stack(view) for view in zip(*(predictor.options.views(image) for image, _ in loaded), strict=True)]
    labels = np.stack([label if i >= 0 else np.full_like(label, 255) for i, (_, label) in zip(rows, loaded, strict=True)])
    return views, labels


def _loaded(pool: ThreadPoolExecutor, work: Sequence, ahead: int) -> Iterator:
    """Yield the results of the calls in `work`, in order, with `ahead` of them under way."""
    pending = collections.deque()
    for call in work:
        pending.append(pool.submit(*call))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def evaluate(
    examples: Examples,
    predictor: Predictor,
    variables: Any,
    *,
    num_classes: int,
    batch_size: int,
    device_mesh: Mesh,
    threads: int = 4,
) -> Evaluation:
    """Predict every image and count.

    Args:
      examples: the split; every process has the same one and loads its rows of each batch.
      variables: {'params', 'batch_stats'}, on the devices of the mesh.
      batch_size: global number of images at once; a multiple of the number of devices.
      threads: that decode and resize, while the device works.

    Raises:
      What `Examples.load` raises: an image that cannot be read is an error, for a score over fewer images is another
        score.
      ValueError: if `batch_size` is not a multiple of the number of devices.
    """
    devices, begin = device_mesh.size, time.monotonic()
    if batch_size % devices:
        raise ValueError(f"evaluation.batch_size={batch_size} must be a multiple of the {devices} devices")
    rows_here = batch_size // jax.process_count()
    first = jax.process_index() * rows_here
    count = jax.jit(confusion.confusion_matrix, static_argnums=2, out_shardings=mesh.replicated(device_mesh))
    compiled_before, waited = predictor.compilations, 0.0
    matrix = np.zeros((num_classes, num_classes), np.int64)
    image_miou = np.full(len(examples), np.nan)

    def collect(batch, matrices):
        for index, one in zip(batch, np.asarray(matrices), strict=True):
            if index >= 0:
                np.add(matrix, one, out=matrix)
                image_miou[index] = confusion.scores(one).mean_iou

    with ThreadPoolExecutor(threads) as pool:
        sizes = list(pool.map(examples.size, range(len(examples))))
        batches = plan(sizes, batch_size)
        work = [(_host_batch, examples, batch[first : first + rows_here], batch[0], predictor) for batch in batches]
        loaded, uncounted = _loaded(pool, work, ahead=threads), collections.deque()
        for batch in batches:
            start = time.monotonic()
            views, labels = next(loaded)
            waited += time.monotonic() - start
            views, labels = mesh.place_batch(device_mesh, (views, labels))
            predicted = predictor.predict(variables, views, labels.shape[1:])
            uncounted.append((batch, count(labels, predicted, num_classes)))
            # Reading a result waits for the device: read the one before, so that it always has work.
            if len(uncounted) > 1:
                collect(*uncounted.popleft())
        while uncounted:
            collect(*uncounted.popleft())
    return Evaluation(
        matrix, image_miou, predictor.compilations - compiled_before, time.monotonic() - begin, waited
    )


def report(result: Evaluation, class_names: Sequence[str]) -> str:
    """Return the table of scores and a line on how they came about."""
    images = len(result.image_miou)
    return (
        f"{confusion.table(result.scores, class_names)}\n"
        f"{images} images in {result.seconds:.1f} s ({images / result.seconds:.2f} a second, {result.waited:.1f} s "
        f"waiting for input), {result.compilations} network programs compiled"
    )


def write_json(path: str | pathlib.Path, result: Evaluation, class_names: Sequence[str], extra: dict) -> None:
    """Write scores, confusion matrix and `extra` (checkpoint, step, options) as JSON."""
    values = extra | confusion.as_dict(result.scores, class_names) | {
        "images": len(result.image_miou),
        "matrix": result.matrix.tolist(),
    }  # fmt: skip
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(json.dumps(values, indent=1) + "\n")


def read_scores(workdir: str | pathlib.Path) -> dict:
    """Return what `write_json` wrote into a work directory.

    Raises:
      ConfigError: if it is not there, or no JSON: the run is not finished.
    """
    path = pathlib.Path(workdir) / "scores.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"no scores of a finished finetuning in {workdir}: {error}") from error


def overlays(
    result: Evaluation, examples: Examples, predictor: Predictor, variables: Any, class_names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return pictures, uint8 RGB, of the images with the best, median and worst mean IoU beside truth and prediction."""
    ranked = [int(i) for i in np.argsort(-result.image_miou) if not np.isnan(result.image_miou[i])]
    if not ranked:
        return {}
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    drawn = {}
    for name, index in chosen.items():
        image, label = examples.load(index)
        predicted = predictor.predict_image(variables, image)
        drawn[name] = pictures.predictions(image[None], label[None], predicted[None], list(class_names))
    return drawn


class Evaluator:
    """The evaluation split of a config and the predictor for it, kept over a run so that nothing compiles twice.

    Raises:
      SegmentationError, SourceError: if the split cannot be opened, or a class has no name.
    """

    def __init__(self, config: ConfigDict, device_mesh: Mesh):
        self.config, self.device_mesh = config, device_mesh
        self.names = tuple(config.data.class_names)
        if len(self.names) != config.data.num_classes or config.model.num_classes != config.data.num_classes:
            raise SegmentationError(
                f"data.num_classes={config.data.num_classes}, but data.class_names has {len(self.names)} names and "
                f"model.num_classes={config.model.num_classes}: all three must agree"
            )
        self.examples = open_examples(config.data, config.data.eval_split, config.evaluation.limit)
        self.predictor = make_predictor(config)

    def __call__(self, variables: Any) -> Evaluation:
        return evaluate(
            self.examples,
            self.predictor,
            variables,
            num_classes=len(self.names),
            batch_size=self.config.evaluation.batch_size or self.device_mesh.size,
            device_mesh=self.device_mesh,
        )

    def check(self, variables: Any) -> None:
        """Raise `ConfigError` if the variables are of another model."""
        check_variables(self.config, variables)

    def save_predictions(self, folder: str | pathlib.Path, variables: Any) -> None:
        """Write the class map of every image as `folder/<its file's name>.png`, with values as the masks have them.

        Labels are mapped back by `data.label_map` (Cityscapes' server takes its 34 ids, not the 19 training labels).
        """
        back = np.arange(256, dtype=np.uint8)
        for value, label in self.config.data.label_map:
            if label != self.config.data.ignore_label:
                back[label] = value
        for index in range(len(self.examples)):
            image, _ = self.examples.load(index)
            predicted = self.predictor.predict_image(variables, image)
            save_class_map(pathlib.Path(folder) / f"{self.examples.stem(index)}.png", back[predicted])

    def save(self, workdir: str | pathlib.Path, result: Evaluation, variables: Any, extra: dict) -> None:
        """Write `scores.json` and overlays (see `overlays`) into `workdir`; process 0 alone does."""
        if jax.process_index():
            return
        write_json(pathlib.Path(workdir) / "scores.json", result, self.names, extra)
        if jax.process_count() == 1:
            for name, picture in overlays(result, self.examples, self.predictor, variables, self.names).items():
                pictures.save_png(pathlib.Path(workdir) / "pictures" / f"evaluation_{name}.png", picture)


class Periodic:
    """A hook of `loop.fit`: evaluates every so many steps and after the last, and keeps the best model.

    The best, by mean IoU, lies in `workdir/best`, as variables that `checkpoints.read_variables` reads, with the score
    in its meta; a resumed run goes on comparing with it. The last evaluation is saved, see `Evaluator.save`.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        every: int,
        total_steps: int,
        writer: Writer,
        workdir: str | pathlib.Path,
        meta: dict,
    ):
        self._evaluator, self._every, self._total, self._writer = evaluator, every, total_steps, writer
        self._workdir, self._meta = pathlib.Path(workdir), meta
        self._checkpoints = Checkpoints(self._workdir / "best", keep=1)
        known = self._checkpoints.latest_step() is not None
        self.best = read(self._workdir / "best")[1]["mean_iou"] if known else -1.0

    def __call__(self, number: int, state: Any) -> None:
        if number % self._every and number != self._total:
            return
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        result = self._evaluator(variables)
        scores = result.scores
        self._writer.text(f"step {number}\n{report(result, self._evaluator.names)}")
        values = {"miou": scores.mean_iou, "mean_accuracy": scores.mean_accuracy}
        values |= {"evaluation_pixel_accuracy": scores.pixel_accuracy, "time/evaluation_seconds": result.seconds}
        self._writer.scalars(number, values)
        # The loop will stop at the next look at a loss; until then a broken model must not count as the best.
        finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))
        if scores.mean_iou > self.best and finite:
            self.best = scores.mean_iou
            self._checkpoints.save(number, variables, self._meta | {"step": number, "mean_iou": self.best})
            self._checkpoints.wait()
        if number == self._total:
            self._evaluator.save(self._workdir, result, variables, {"step": number, "best_mean_iou": self.best})
