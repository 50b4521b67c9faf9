"""Class maps of a folder of images: python scripts/predict.py --checkpoint RUN --images DIR --output OUT

RUN is the work directory of a finetuning (or its `best`). Writes OUT/masks (palette PNGs of class indices, at the images'
own sizes) and OUT/overlays. A model without a config in its checkpoint, such as a converted one, takes --config.
"""

import sys

import _cli

_cli.flags.DEFINE_string("checkpoint", None, "Finetuned model.", required=True)
_cli.flags.DEFINE_string("images", None, "Folder of images, nested or flat.", required=True)
_cli.flags.DEFINE_string("output", None, "Where masks and overlays go.", required=True)
_cli.flags.DEFINE_bool("mask_values", False, "Write the values of the data set's own masks (for a server), not indices.")
CONFIG = _cli.config_flags.DEFINE_config_file("config", None, "Finetuning config, if the checkpoint has none.")

from ml_collections import ConfigDict  # noqa: E402

from cp2_jax.data.images.sources import ImageFolder  # noqa: E402
from cp2_jax.data.labelled import classes  # noqa: E402
from cp2_jax.options import ConfigError  # noqa: E402
from cp2_jax.runs import progress  # noqa: E402
from cp2_jax.runs.checkpoints import read_variables  # noqa: E402
from cp2_jax.segmentation import class_maps, predictor  # noqa: E402


def main(_):
    flags = _cli.flags.FLAGS
    variables, meta = read_variables(flags.checkpoint)
    if not CONFIG.value and "config" not in meta:
        raise ConfigError(f"{flags.checkpoint} has no config in it; give one with --config configs/finetune_….py")
    config = CONFIG.value or ConfigDict(meta["config"])
    classes.resolve(config)
    predictor.check_variables(config, variables)
    images = ImageFolder(flags.images)
    done = class_maps.predict_folder(config, variables, images, flags.output, flags.mask_values)
    unreadable = [problem for problem in progress.track(done, "predicting", len(images)) if problem]
    print(f"{len(images) - len(unreadable)} images; masks and overlays in {flags.output}")
    if unreadable:
        sys.exit("not predicted:\n  " + "\n  ".join(unreadable))


if __name__ == "__main__":
    _cli.run(main)
