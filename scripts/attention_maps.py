"""Make the attention maps of a data set's images, for pretraining with --config.augment.mask=attention (Table 4).

    python scripts/convert_checkpoint.py dino_vitbase16_pretrain.pth converted/dino_vitb16
    python scripts/attention_maps.py --images /data/imagenet/train --checkpoint converted/dino_vitb16 --output data/maps
    python scripts/pretrain.py --config configs/quick_tune_r50_aspp.py --workdir DIR \
        --config.data.path=/data/imagenet/train --config.augment.mask=attention --config.data.attention=data/maps

Of each image, in the order of the data set: the last block's attention of the class token, averaged over the heads,
upsampled to the image, blurred, levelled. Run again, complete maps are left alone.
"""

import _cli

IMAGES = _cli.flags.DEFINE_string("images", None, "Folder of images, or a TFDS data set.", required=True)
SOURCE = _cli.flags.DEFINE_enum("source", "folder", ["folder", "tfds"], "What --images is.")
SPLIT = _cli.flags.DEFINE_string("split", "train", "Of a TFDS data set.")
CHECKPOINT = _cli.flags.DEFINE_string("checkpoint", None, "Converted ViT; the paper's is DINO's ViT-B/16.", required=True)
OUTPUT = _cli.flags.DEFINE_string("output", None, "Folder for the maps: the value of data.attention.", required=True)
SIDE = _cli.flags.DEFINE_integer("side", 224, "Side in pixels at which the network sees the images.", lower_bound=1)
BATCH = _cli.flags.DEFINE_integer("batch", 64, "Images at once.", lower_bound=1)
PICTURE = _cli.flags.DEFINE_string("picture", None, "Also write this PNG of some images beside their maps.")

import numpy as np  # noqa: E402

from cp2_jax import pictures  # noqa: E402
from cp2_jax.data.images import decoding, sources  # noqa: E402
from cp2_jax.data.prepare import writing  # noqa: E402
from cp2_jax.pretraining import attention_maps  # noqa: E402
from cp2_jax.runs import checkpoints  # noqa: E402


def main(_):
    is_folder = SOURCE.value == "folder"
    source = sources.ImageFolder(IMAGES.value) if is_folder else sources.TfdsSource(IMAGES.value, SPLIT.value)
    attend = attention_maps.attention_of(*checkpoints.read_variables(CHECKPOINT.value))
    import tensorflow_datasets as tfds  # here, because it takes a second

    maps = attention_maps.make_maps(source, attend, SIDE.value, BATCH.value)
    features = {"image": tfds.features.Image(shape=(None, None, 1), encoding_format="jpeg")}
    settings = f"{attention_maps.fingerprint(source)}, side {SIDE.value}, {CHECKPOINT.value}"
    path = writing.write_dataset(
        OUTPUT.value, attention_maps.NAME, {"train": maps}, features, settings, "Attention maps.", {"train": len(source)}
    )
    print(f"{len(source):,d} maps in {path}")
    if PICTURE.value:
        written = sources.TfdsSource(path)
        chosen = np.linspace(0, len(source) - 1, 8).astype(int)
        images = [decoding.decode(source[i], source.name(i)) for i in chosen]
        maps = [decoding.decode(written[i], written.name(i))[..., 0] for i in chosen]
        pictures.save_png(PICTURE.value, pictures.maps(images, maps))


if __name__ == "__main__":
    _cli.run(main)
