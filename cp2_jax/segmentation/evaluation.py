"""Scores over a whole labelled split, from one confusion matrix, at each image's own size."""

import collections
import dataclasses
import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float, Int64, UInt8
from ml_collections import ConfigDict

from cp2_jax import pictures
from cp2_jax.data import files
from cp2_jax.data.ahead import ahead
from cp2_jax.data.labelled.examples import Examples, SegmentationError, open_examples
from cp2_jax.paths import AnyPath, at
from cp2_jax.runs import mesh
from cp2_jax.segmentation import confusion, reports
from cp2_jax.segmentation.batching import Batch
from cp2_jax.segmentation.class_maps import class_colors, mask_values, overlay_colors, save_class_map
from cp2_jax.segmentation.inputs import Inputs
from cp2_jax.segmentation.options import EvaluationOptions
from cp2_jax.segmentation.predictor import Predictor, make_predictor
from cp2_jax.segmentation.tally import Keep, Tally

_THREADS = 4  # that decode and resize, while the device works
_MANY_PROGRAMS = 16  # beyond so many, a warning says how to have fewer


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
      matrix: rows = truth, columns = prediction.
      boundary: pixels near the classes' borders, see `boundaries.count`.
      image_miou: each image's own mean IoU, nan where nothing is labelled.
      compilations: network programs that were compiled on the way.
      seconds: of all.
      waited: seconds of waiting for input.
      batches: the images that were predicted together.
    """

    matrix: Int64[np.ndarray, "classes classes"]
    boundary: Int64[np.ndarray, "3 classes"]
    image_miou: Float[np.ndarray, " images"]
    compilations: int
    seconds: float
    waited: float
    batches: tuple[Batch, ...]

    @property
    def scores(self) -> confusion.Scores:
        """All that follows from the counts."""
        return confusion.scores(self.matrix, self.boundary)


def _host_batch(
    examples: Examples, batch: Batch, rows: Sequence[int], predictor: Predictor
) -> tuple[Inputs, UInt8[np.ndarray, "rows height width"]]:
    """Return what the device needs of these rows of a batch; rows without an image show the first, unlabelled."""
    indices = [batch.indices[row] for row in rows]
    loaded = [examples.load(index if index >= 0 else batch.indices[0]) for index in indices]
    labels = np.full((len(rows), *batch.shape), 255, np.uint8)
    for row, (index, (_, label)) in enumerate(zip(indices, loaded, strict=True)):
        if index >= 0:
            labels[row, : label.shape[0], : label.shape[1]] = label
    return predictor.inputs([image for image, _ in loaded], batch), labels


def evaluate(
    examples: Examples,
    predictor: Predictor,
    variables: Any,
    *,
    num_classes: int,
    batch_size: int,
    device_mesh: Mesh,
    programs: int = 0,
    keep: Keep | None = None,
) -> Evaluation:
    """Predict every image and count.

    Args:
      examples: the split; every process has the same one and loads its rows of each batch.
      variables: {'params', 'batch_stats'}, on the devices of the mesh.
      batch_size: global number of images at once. Which are predicted together changes nothing, so that it is rounded up to
        a multiple of the number of devices: a run may go on, or be evaluated, on another number.
      programs: see `batching.plan`.
      keep: called as (index, class map) for each image of this process's rows.

    Raises:
      What `Examples.load` raises: an image that cannot be read is an error, for a score over fewer images is another
        score.
      SegmentationError: if not every labelled pixel was counted, which would be a fault of this program.
    """
    begin = time.monotonic()
    batch_size = -(-batch_size // device_mesh.size) * device_mesh.size
    rows = mesh.local_rows(device_mesh, batch_size)
    tally = Tally(len(examples), num_classes, rows, keep)
    count = jax.jit(confusion.confusion_matrix, static_argnums=2, out_shardings=mesh.replicated(device_mesh))
    compiled_before, waited = predictor.compilations, 0.0
    with ThreadPoolExecutor(_THREADS) as pool:
        batches = predictor.plan(list(pool.map(examples.size, range(len(examples)))), batch_size, programs)
        _warn_of_compilations(batches)
        loaded = ahead(pool, ((_host_batch, examples, batch, rows, predictor) for batch in batches), _THREADS)
        uncounted = collections.deque()
        for batch in batches:
            start = time.monotonic()
            inputs, labels = next(loaded)
            waited += time.monotonic() - start
            placed, placed_labels = mesh.place_batch(device_mesh, (inputs, labels))
            predicted = predictor.predict(variables, placed, batch)
            uncounted.append((batch, labels, inputs.sizes, predicted, count(placed_labels, predicted, num_classes)))
            # Reading a result waits for the device: read the one before, so that it always has work.
            if len(uncounted) > 1:
                tally.add(*uncounted.popleft())
        while uncounted:
            tally.add(*uncounted.popleft())
    tally.close()
    compiled = predictor.compilations - compiled_before
    seconds = time.monotonic() - begin
    return Evaluation(tally.matrix, tally.boundary, tally.image_miou, compiled, seconds, waited, tuple(batches))


def _warn_of_compilations(batches: Sequence[Batch]) -> None:
    shapes = len({(batch.views, batch.shape, batch.padded) for batch in batches})
    if shapes > _MANY_PROGRAMS:
        logging.warning(
            "images of %d sizes: as many programs are compiled (and kept for the next time). A ResNet needs "
            "evaluation.programs=8 at most; any model one, with evaluation.window and evaluation.stride",
            shapes,
        )


class Evaluator:
    """The evaluation split of a config and the predictor for it, kept over a run so that nothing compiles twice.

    Attributes:
      config: a finetuning config whose classes are resolved.
      device_mesh: of all devices.
      names: of the classes.
      examples: the images of the split.
      predictor: of the config's model.

    Raises:
      ConfigError: for an impossible model or evaluation.
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
        self.predictor = make_predictor(config)
        self._options: EvaluationOptions = self.predictor.options
        self.examples = open_examples(config.data, config.data.eval_split, self._options.limit)

    @property
    def split(self) -> reports.Split:
        """Which images are scored."""
        names = "\n".join(self.examples.stem(index) for index in range(len(self.examples)))
        return reports.Split(self.config.data.eval_split, hashlib.sha256(names.encode()).hexdigest()[:16])

    def __call__(self, variables: Any, predictions: str | AnyPath | None = None) -> Evaluation:
        """Score the split.

        Args:
          variables: {'params', 'batch_stats'}, on the devices of the mesh.
          predictions: folder for the class map of every image, as `<its name>.png` with the values that the masks have,
            see `class_maps.mask_values`.

        Raises:
          What `evaluate` raises.
        """
        values, colors = mask_values(self.config.data), class_colors(self.config.data)

        def keep(index, predicted):
            path = at(predictions) / files.as_path(f"{self.examples.stem(index)}.png")
            save_class_map(path, predicted, colors, values)

        return evaluate(
            self.examples,
            self.predictor,
            variables,
            num_classes=len(self.names),
            batch_size=self._options.batch_size or self.device_mesh.size,
            device_mesh=self.device_mesh,
            programs=self._options.programs,
            keep=keep if predictions else None,
        )

    def draw(self, result: Evaluation, variables: Any) -> dict[str, UInt8[np.ndarray, "picture_height picture_width 3"]]:
        """Return pictures of the images with the best, median and worst mean IoU beside truth and prediction, by name.

        All processes call it, for they predict together; all get the same.
        """
        ranked = [int(i) for i in np.argsort(-result.image_miou) if not np.isnan(result.image_miou[i])]
        if not ranked:
            return {}
        chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
        colors, ignore = overlay_colors(self.config.data), self.config.data.ignore_label
        drawn = {}
        for name, index in chosen.items():
            image, label = self.examples.load(index)
            # With the images that it was predicted with before: nothing has to be compiled.
            batch = next(batch for batch in result.batches if index in batch.indices)
            rows = mesh.local_rows(self.device_mesh, len(batch.indices))
            inputs, _ = _host_batch(self.examples, batch, rows, self.predictor)
            predicted = self.predictor.predict(variables, mesh.place_batch(self.device_mesh, inputs), batch)
            predicted = np.asarray(mesh.local_copy(self.device_mesh, predicted))
            predicted = predicted[batch.indices.index(index), : label.shape[0], : label.shape[1]]
            words = f"{self.examples.stem(index)}: mean IoU {result.image_miou[index]:.1%}, {name} of {len(ranked)} images"
            shown = image[None], label[None], predicted[None]
            drawn[name] = pictures.predictions(*shown, self.names, ignore, colors, captions=[words])
        return drawn

    def write_scores(self, workdir: str | AnyPath, result: Evaluation, extra: dict, own: bool = True) -> AnyPath:
        """Write scores into a work directory; of several processes, the first does.

        Args:
          extra, own: see `save`.

        Returns:
          The path of the scores.
        """
        split = self.split
        path = reports.scores_path(at(workdir), split, own)
        if jax.process_index() == 0:
            extra = extra | split.as_dict() | {"protocol": self.config.evaluation.to_dict()}
            reports.write_json(path, result, self.names, extra)
        return path

    def save(self, workdir: str | AnyPath, result: Evaluation, variables: Any, extra: dict, own: bool = True) -> AnyPath:
        """Write scores and overlays into a work directory; all processes call it (see `overlays`), the first writes.

        Args:
          extra: what to write with the scores, such as the checkpoint and its step.
          own: whether the split is the one that the run itself is evaluated on, see `reports.scores_path`.

        Returns:
          The path of the scores.
        """
        path = self.write_scores(workdir, result, extra, own)  # before the pictures: should they fail, the scores are kept
        stem, drawn = path.stem.replace("scores", "evaluation", 1), self.draw(result, variables)
        for name, picture in drawn.items() if jax.process_index() == 0 else ():
            pictures.save_png(at(workdir) / "pictures" / f"{stem}_{name}.png", picture)
        return path
