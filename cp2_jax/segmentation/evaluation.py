"""Scores over a whole labelled split, from one confusion matrix, at each image's own size."""

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cp2_jax import pictures
from cp2_jax.data.ahead import ahead
from cp2_jax.data.labelled.examples import Examples, SegmentationError, open_examples
from cp2_jax.options import ConfigError
from cp2_jax.runs import mesh
from cp2_jax.segmentation import confusion
from cp2_jax.segmentation.class_maps import class_colors, mask_values, overlay_colors, save_class_map
from cp2_jax.segmentation.predictor import Batch, Predictor, check_variables, make_predictor


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    matrix: int64 [classes, classes], rows = truth. image_miou: float [images], each image's own mean IoU (nan where
    nothing is labelled). compilations: network programs compiled on the way. seconds: of all, and of waiting for input.
    batches: the images that were predicted together.
    """

    matrix: np.ndarray
    image_miou: np.ndarray
    compilations: int
    seconds: float
    waited: float
    batches: tuple[Batch, ...]

    @property
    def scores(self) -> confusion.Scores:
        return confusion.scores(self.matrix)


def _host_batch(examples: Examples, batch: Batch, rows: Sequence[int], predictor: Predictor):
    """Return what the device needs of these rows of a batch; a row of -1 shows its first image, with nothing labelled."""
    loaded = [examples.load(index if index >= 0 else batch.indices[0]) for index in rows]
    labels = np.full((len(rows), *batch.shape), 255, np.uint8)
    for row, (index, (_, label)) in enumerate(zip(rows, loaded, strict=True)):
        if index >= 0:
            labels[row, : label.shape[0], : label.shape[1]] = label
    return predictor.host_inputs([image for image, _ in loaded], batch), labels


def evaluate(
    examples: Examples,
    predictor: Predictor,
    variables: Any,
    *,
    num_classes: int,
    batch_size: int,
    device_mesh: Mesh,
    programs: int = 0,
    threads: int = 4,
    keep: Callable[[int, np.ndarray], None] | None = None,
) -> Evaluation:
    """Predict every image and count.

    Args:
      examples: the split; every process has the same one and loads its rows of each batch.
      variables: {'params', 'batch_stats'}, on the devices of the mesh.
      batch_size: global number of images at once; a multiple of the number of devices.
      programs: see `Predictor.plan`.
      threads: that decode and resize, while the device works.
      keep: called as (index, class map) for each image of this process's rows.

    Raises:
      What `Examples.load` raises: an image that cannot be read is an error, for a score over fewer images is another
        score.
      SegmentationError: if not every labelled pixel was counted, which would be a fault of this program.
      ValueError: if `batch_size` is not a multiple of the number of devices.
    """
    devices, begin = device_mesh.size, time.monotonic()
    if batch_size % devices:
        raise ValueError(f"evaluation.batch_size={batch_size} must be a multiple of the {devices} devices")
    here = mesh.local_rows(device_mesh, batch_size)
    labelled = 0
    count = jax.jit(confusion.confusion_matrix, static_argnums=2, out_shardings=mesh.replicated(device_mesh))
    compiled_before, waited = predictor.compilations, 0.0
    matrix = np.zeros((num_classes, num_classes), np.int64)
    image_miou = np.full(len(examples), np.nan)

    def collect(batch, labels, predicted, matrices):
        matrices = np.asarray(matrices)
        for index, one in zip(batch.indices, matrices, strict=True):
            if index >= 0:
                np.add(matrix, one, out=matrix)
                image_miou[index] = confusion.scores(one).mean_iou
        for row, label in zip(here, labels, strict=True):
            _check_count(int(matrices[row].sum()), int((label < num_classes).sum()), f"image {batch.indices[row]}")
        for row, one in zip(here, mesh.local_part(predicted), strict=True) if keep else ():
            if (index := batch.indices[row]) >= 0:
                height, width = sizes[index]
                keep(index, one[:height, :width])

    with ThreadPoolExecutor(threads) as pool:
        sizes = list(pool.map(examples.size, range(len(examples))))
        batches = predictor.plan(sizes, batch_size, programs)
        _warn_of_compilations(batches)
        work = ((_host_batch, examples, batch, [batch.indices[row] for row in here], predictor) for batch in batches)
        loaded, uncounted = ahead(pool, work, threads), collections.deque()
        for batch in batches:
            start = time.monotonic()
            inputs, labels = next(loaded)
            waited += time.monotonic() - start
            labelled += int((labels < num_classes).sum())
            inputs, placed = mesh.place_batch(device_mesh, (inputs, labels))
            predicted = predictor.predict(variables, inputs, batch)
            uncounted.append((batch, labels, predicted, count(placed, predicted, num_classes)))
            # Reading a result waits for the device: read the one before, so that it always has work.
            if len(uncounted) > 1:
                collect(*uncounted.popleft())
        while uncounted:
            collect(*uncounted.popleft())
    _check_count(int(matrix.sum()), mesh.sum_over_processes(labelled), f"{len(examples)} images")
    return Evaluation(
        matrix,
        image_miou,
        predictor.compilations - compiled_before,
        time.monotonic() - begin,
        waited,
        tuple(batches),
    )


def _check_count(counted: int, labelled: int, what: str) -> None:
    """Refuse a confusion matrix that does not hold every labelled pixel: rows were lost between hosts and devices."""
    if counted != labelled:
        raise SegmentationError(
            f"the confusion matrix holds {counted} pixels of {what}, of which {labelled} are labelled: images were lost or "
            "changed places on their way to the devices. This is a fault of cp2_jax; please report it"
        )


def _warn_of_compilations(batches: Sequence[Batch], many: int = 16) -> None:
    shapes = len({(batch.views, batch.shape, batch.padded) for batch in batches})
    if shapes > many:
        logging.warning(
            "images of %d sizes: as many programs are compiled (and kept for the next time). A ResNet needs "
            "evaluation.programs=8 at most; any model one, with evaluation.window and evaluation.stride",
            shapes,
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
    result: Evaluation,
    examples: Examples,
    predictor: Predictor,
    variables: Any,
    class_names: Sequence[str],
    device_mesh: Mesh,
    colors: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return pictures, uint8 RGB, of the images with the best, median and worst mean IoU beside truth and prediction.

    All processes call it, for they predict together; all get the same.
    """
    ranked = [int(i) for i in np.argsort(-result.image_miou) if not np.isnan(result.image_miou[i])]
    if not ranked:
        return {}
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    drawn = {}
    for name, index in chosen.items():
        image, label = examples.load(index)
        # With the images that it was predicted with before: nothing has to be compiled.
        batch = next(batch for batch in result.batches if index in batch.indices)
        here = mesh.local_rows(device_mesh, len(batch.indices))
        inputs, _ = _host_batch(examples, batch, [batch.indices[row] for row in here], predictor)
        predicted = predictor.predict(variables, mesh.place_batch(device_mesh, inputs), batch)
        predicted = np.asarray(mesh.local_copy(device_mesh, predicted))
        predicted = predicted[batch.indices.index(index), : label.shape[0], : label.shape[1]]
        words = f"{examples.stem(index)}: mean IoU {result.image_miou[index]:.1%}, {name} of {len(ranked)} images"
        shown = image[None], label[None], predicted[None]
        drawn[name] = pictures.predictions(*shown, class_names, colors=colors, captions=[words])
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

    def __call__(self, variables: Any, predictions: str | pathlib.Path | None = None) -> Evaluation:
        """Score the split.

        Args:
          predictions: folder for the class map of every image, as `<its name>.png` with the values that the masks have,
            see `class_maps.mask_values`.
        """
        values, colors = mask_values(self.config.data), class_colors(self.config.data)

        def keep(index, predicted):
            path = pathlib.Path(predictions) / f"{self.examples.stem(index)}.png"
            save_class_map(path, predicted, colors, values)

        return evaluate(
            self.examples,
            self.predictor,
            variables,
            num_classes=len(self.names),
            batch_size=self.config.evaluation.batch_size or self.device_mesh.size,
            device_mesh=self.device_mesh,
            programs=self.config.evaluation.programs,
            keep=keep if predictions else None,
        )

    def check(self, variables: Any) -> None:
        """Raise `ConfigError` if the variables are of another model."""
        check_variables(self.config, variables)

    def save(self, workdir: str | pathlib.Path, result: Evaluation, variables: Any, extra: dict) -> None:
        """Write `scores.json` and overlays into `workdir`; all processes call it (see `overlays`), the first writes."""
        first, workdir, colors = jax.process_index() == 0, pathlib.Path(workdir), overlay_colors(self.config.data)
        if first:  # before the pictures: should they fail, the scores are kept
            write_json(workdir / "scores.json", result, self.names, extra)
        drawn = overlays(result, self.examples, self.predictor, variables, self.names, self.device_mesh, colors)
        for name, picture in drawn.items() if first else ():
            pictures.save_png(workdir / "pictures" / f"evaluation_{name}.png", picture)
