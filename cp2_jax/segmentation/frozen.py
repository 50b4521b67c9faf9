"""A linear classifier and nearest neighbours on frozen features: what a backbone knows without finetuning.

`score` does both on two labelled splits; `cp2_jax.probe` and `cp2 probe` call it with a checkpoint's features.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from cp2_jax.data.labelled import transforms
from cp2_jax.data.labelled.examples import Examples
from cp2_jax.models import resize
from cp2_jax.runs import optim
from cp2_jax.segmentation import confusion

Features = Callable[[UInt8[Array, "batch height width 3"]], Float[Array, "batch h w channels"]]


def cell_shares(label: Int[Array, "batch height width"], stride: int, classes: int) -> Float[Array, "batch h w classes"]:
    """Return the share of each class in each feature's cell of `stride` x `stride` pixels; ignored pixels have none."""
    batch, height, width = label.shape
    one_hot = jax.nn.one_hot(label, classes)  # zeros for 255
    cells = one_hot.reshape(batch, height // stride, stride, width // stride, stride, classes)
    return jnp.mean(cells, axis=(2, 4))


def fit(
    features: Float[Array, "count channels"],
    shares: Float[Array, "count classes"],
    decay: float = 1e-3,
    steps: int = 100,
) -> tuple[Float[Array, "channels classes"], Float[Array, " classes"]]:
    """Fit a softmax regression by L-BFGS from zero: no chance is involved.

    Args:
      features: of all labelled cells. They are standardised inside; the returned weights apply to them as they are.
      shares: targets, see `cell_shares`.
      decay: weight of half the squared norm of the (standardised) weights.
    """
    mean, std = jnp.mean(features, axis=0), jnp.std(features, axis=0) + 1e-6
    standard = (features - mean) / std

    def loss(weights):
        logits = standard @ weights[:-1] + weights[-1]
        return jnp.mean(optax.softmax_cross_entropy(logits, shares)) + decay / 2 * jnp.sum(weights[:-1] ** 2)

    start = jnp.zeros((features.shape[1] + 1, shares.shape[1]), features.dtype)
    weights = optim.minimize(loss, start, steps)
    kernel = weights[:-1] / std[:, None]
    return kernel, weights[-1] - mean @ kernel


def predict(
    features: Float[Array, "batch h w channels"],
    kernel: Float[Array, "channels classes"],
    bias: Float[Array, " classes"],
    size: tuple[int, int],
) -> Int[Array, "batch height width"]:
    """Return class maps of the images' size: logits upsampled bilinearly, as in finetuning."""
    return jnp.argmax(resize.bilinear(features @ kernel + bias, size), axis=-1)


def neighbours(
    features: Float[Array, "batch h w channels"],
    known: Float[Array, "count channels"],
    shares: Float[Array, "count classes"],
    k: int,
    temperature: float = 0.07,
) -> Float[Array, "batch h w classes"]:
    """Return the votes of the `k` nearest known cells for the class of each cell, as DINO's k-NN evaluation weighs them.

    Near is by cosine; a vote weighs exp(cosine / temperature) and goes to the classes by their shares of the cell.

    Args:
      features: to be classified.
      known: features whose classes are known; at least `k` of them.
      shares: of the classes in each known cell, see `cell_shares`.
    """
    similar = _unit(features) @ _unit(known).T
    nearest, which = jax.lax.top_k(similar, k)
    return jnp.einsum("...k,...kc->...c", jnp.exp((nearest - 1) / temperature), shares[which])


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def score(
    features: Features,
    train: Examples,
    test: Examples,
    num_classes: int,
    *,
    size: int = 224,
    cells: int = 20_000,
    k: int = 20,
    batch: int = 16,
) -> dict[str, confusion.Scores]:
    """Return the scores of a linear classifier and of nearest neighbours on frozen features.

    Args:
      features: from images, uint8 in 0-255, to one feature for each cell.
      train, test: labelled images; all are resized to `size` x `size` pixels, masks by the nearest pixel.
      num_classes: of the labels.
      size: side in pixels, a multiple of the features' stride.
      cells: labelled cells of `train` that are used, drawn at random, always the same.
      k: number of neighbours.
      batch: images at once.

    Returns:
      {"linear": scores, "knn": scores} of the pixels of `test` at `size` x `size`.

    Raises:
      ValueError: if no cell of `train` is labelled.
      What `Examples.load` raises.
    """
    found, targets = [], []
    for images, labels in _batches(train, size, batch):
        maps = features(images)
        shares = cell_shares(jnp.asarray(labels), size // maps.shape[1], num_classes)
        labelled = np.asarray(shares.sum(-1) > 0).ravel()
        found.append(np.asarray(maps).reshape(labelled.size, -1)[labelled])
        targets.append(np.asarray(shares).reshape(labelled.size, -1)[labelled])
    known, shares = np.concatenate(found), np.concatenate(targets)
    if not len(known):
        raise ValueError("no cell of the training images is labelled")
    chosen = np.sort(np.random.default_rng(0).permutation(len(known))[:cells])
    known, shares = jnp.asarray(known[chosen], jnp.float32), jnp.asarray(shares[chosen], jnp.float32)
    kernel, bias = jax.jit(fit)(known, shares)
    vote = jax.jit(lambda maps: neighbours(maps, known, shares, min(k, len(known))))
    matrices = {name: np.zeros((num_classes, num_classes), np.int64) for name in ("linear", "knn")}
    for images, labels in _batches(test, size, batch):
        maps = features(images).astype(jnp.float32)
        votes = jnp.concatenate([vote(one[None]) for one in maps])
        guesses = {"linear": predict(maps, kernel, bias, (size, size))}
        guesses["knn"] = jnp.argmax(resize.bilinear(votes, (size, size)), axis=-1)
        for name, guess in guesses.items():
            counted = confusion.confusion_matrix(jnp.asarray(labels), guess, num_classes)
            matrices[name] += np.asarray(counted, np.int64).sum(axis=0)
    return {name: confusion.scores(matrix) for name, matrix in matrices.items()}


def _batches(examples: Examples, size: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (images, labels) of one size, the last batch filled up with images that have no labels."""
    for start in range(0, len(examples), batch):
        images = np.zeros((batch, size, size, 3), np.uint8)
        labels = np.full((batch, size, size), 255, np.uint8)
        for row, index in enumerate(range(start, min(start + batch, len(examples)))):
            image, label = examples.load(index)
            images[row] = transforms.resize_image(image, (size, size))
            labels[row] = transforms.resize_mask(label, (size, size))
        yield images, labels
