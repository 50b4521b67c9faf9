"""Makes the README's pictures again. README.md beside this file says who took the photographs.

    pip install scikit-image        # its wheel brings the photographs
    python docs/pictures/make.py pairs
    python docs/pictures/make.py similarity --run runs/demo/pretrain
    python docs/pictures/make.py predictions --run runs/demo/finetune

`pairs` shows how CP2 composes what it trains on, with the code that trains. `similarity` shows what a pretraining finds
alike after its first step and after its last, `predictions` what a finetuning says of some validation images: both put
together what the runs of `scripts/quickstart.sh` have drawn (runs/demo/pretrain, runs/demo/finetune).
"""

import argparse
import dataclasses
import importlib.resources
import pathlib

import cv2
import jax
import numpy as np
from PIL import Image

from cp2_jax import config_files, pictures
from cp2_jax.augment import compose
from cp2_jax.data.images.crops import generator, random_crops
from cp2_jax.models.inputs import denormalize
from cp2_jax.pictures import canvas
from cp2_jax.runs import rngs

HERE = pathlib.Path(__file__).parent
PHOTOGRAPHS = {"cat": "chelsea.png", "coffee": "coffee.png", "astronaut": "astronaut.png", "rocket": "rocket.jpg"}
# Of each row: the photograph whose crops are pasted, and those that query and key are pasted onto.
ROWS = (("cat", "coffee", "rocket"), ("astronaut", "cat", "coffee"), ("coffee", "rocket", "astronaut"))
SIDE = 224


def photograph(name: str) -> bytes:
    """Return the bytes of one of `PHOTOGRAPHS`, from the installed scikit-image."""
    return importlib.resources.files("skimage").joinpath("data", PHOTOGRAPHS[name]).read_bytes()


def composed(side: int, options: compose.AugmentOptions, seed: int):
    """Return (pair, query, key): `ROWS` composed as in training at `side` pixels, and the images for the eye."""
    foreground, background = [], []
    for number, (front, *behind) in enumerate(ROWS):
        foreground.append(random_crops(photograph(front), front, generator(seed, number), side, 2, (0.25, 0.8)))
        crops = [random_crops(photograph(name), name, generator(seed, number, 1), side, 1, (0.5, 1.0)) for name in behind]
        background.append(np.concatenate(crops))
    batch = {"foreground": np.stack(foreground), "background": np.stack(background)}
    pair = jax.tree.map(np.asarray, compose.compose_batch(rngs.key(seed, "augment"), batch, options))
    return pair, *(denormalize(x, options.mean, options.std) for x in (pair.image_query, pair.image_key))


def pairs(arguments) -> canvas.Block:
    """Draw photographs, composed queries and keys with the pasted part outlined, and their masks."""
    options = compose.AugmentOptions.from_config(config_files.load("pretrain"))
    pair, query, key = composed(SIDE, dataclasses.replace(options, grayscale=0.0), arguments.seed)
    columns = (
        ("photograph", [_fitted(photograph(front)) for front, *_ in ROWS]),
        ("query: a crop of it,\npasted onto another", list(map(pictures.outline, query, pair.mask_query))),
        ("mask of the query", list(map(_white, pair.mask_query))),
        ("key: another crop of it,\npasted onto a third", list(map(pictures.outline, key, pair.mask_key))),
        ("mask of the key", list(map(_white, pair.mask_key))),
    )
    return canvas.table(columns)


def similarity(arguments) -> canvas.Block:
    """Put the first and the last picture of similarity that a pretraining has drawn beside each other."""
    first, *_, last = sorted((pathlib.Path(arguments.run) / "pictures").glob("similarity_*.png"))
    both = canvas.beside([_read(first), _read(last)])
    return cv2.resize(both, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)


def predictions(arguments) -> canvas.Block:
    """Stack the pictures that a finetuning has drawn of its best, median and worst validation image."""
    kinds = ("best", "median", "worst")
    files = [max((pathlib.Path(arguments.run) / "pictures").glob(f"evaluation_{kind}*.png")) for kind in kinds]
    return canvas.above([_read(file) for file in files])


def _read(file: pathlib.Path) -> canvas.Block:
    return np.asarray(Image.open(file).convert("RGB"))


def _white(mask: np.ndarray) -> canvas.Block:
    return np.repeat((255 * mask).astype(np.uint8)[..., None], 3, axis=2)


def _fitted(data: bytes) -> canvas.Block:
    """Return a photograph within a square of paper."""
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    factor = SIDE / max(image.shape[:2])
    small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    above = (SIDE - small.shape[0]) // 2
    return np.pad(small, ((above, SIDE - small.shape[0] - above), (0, SIDE - small.shape[1]), (0, 0)), constant_values=255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=[draw.__name__ for draw in (pairs, similarity, predictions)])
    parser.add_argument("--run", help="work directory of a pretraining (similarity) or finetuning (predictions)")
    parser.add_argument("--seed", type=int, default=4, help="of crops, colours and masks")
    arguments = parser.parse_args()
    drawn = globals()[arguments.picture](arguments)
    path = HERE / f"{arguments.picture}.jpg"
    # As JPEG: as PNG, photographs would take a megabyte.
    Image.fromarray(drawn).save(path, quality=85, optimize=True)
    print(f"{path}: {drawn.shape[1]} x {drawn.shape[0]} pixels, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
