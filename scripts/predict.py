"""Class maps of a folder of images: python scripts/predict.py --checkpoint RUN --images DIR --output OUT

RUN is the work directory of a finetuning (or its `best`). Writes OUT/masks (palette PNGs of class indices, at the images'
own sizes) and OUT/overlays. A model without a config in its checkpoint, such as a converted one, takes --config.
"""

import pathlib

import _cli

_cli.flags.DEFINE_string("checkpoint", None, "Finetuned model.", required=True)
_cli.flags.DEFINE_string("images", None, "Folder of images, nested or flat.", required=True)
_cli.flags.DEFINE_string("output", None, "Where masks and overlays go.", required=True)
CONFIG = _cli.config_flags.DEFINE_config_file("config", None, "Finetuning config, if the checkpoint has none.")

import rich.progress  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from cp2_jax import inference, pictures  # noqa: E402
from cp2_jax.checkpoints import read_variables  # noqa: E402
from cp2_jax.data.decode import decode  # noqa: E402
from cp2_jax.data.sources import ImageFolder  # noqa: E402
from cp2_jax.settings import ConfigError  # noqa: E402


def main(_):
    flags = _cli.flags.FLAGS
    variables, meta = read_variables(flags.checkpoint)
    if not CONFIG.value and "config" not in meta:
        raise ConfigError(f"{flags.checkpoint} has no config in it; give one with --config configs/finetune_….py")
    config = CONFIG.value or ConfigDict(meta["config"])
    predictor = inference.make_predictor(config)
    inference.check_variables(config, variables)
    images, output = ImageFolder(flags.images), pathlib.Path(flags.output)
    for index in rich.progress.track(range(len(images)), "predicting"):
        image = decode(images[index], images.name(index))
        predicted = predictor.predict_image(variables, image)
        name = pathlib.Path(images.name(index)).relative_to(images.root).with_suffix(".png")
        inference.save_class_map(output / "masks" / name, predicted)
        pictures.save_png(output / "overlays" / name, inference.overlay(image, predicted))
    print(f"{len(images)} images; masks and overlays in {output}")


if __name__ == "__main__":
    _cli.run(main)
