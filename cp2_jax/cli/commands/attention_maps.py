"""`cp2 attention-maps`: maps of a data set's images, for pretraining with `augment.mask=attention` (Table 4)."""

from cp2_jax.cli import command

TEXT = """\
Make the attention maps of a data set's images, for pretraining with
--config.augment.mask=attention (the paper's Table 4).

  cp2 convert dino_vitbase16_pretrain.pth converted/dino_vitb16
  cp2 attention-maps --images /data/imagenet/train \\
      --checkpoint converted/dino_vitb16 --output data/maps
  cp2 pretrain --config quick_tune --workdir DIR \\
      --config.data.path=/data/imagenet/train \\
      --config.augment.mask=attention --config.data.attention=data/maps

Of each image, in the order of the data set: the last block's attention of the
class token, averaged over the heads, upsampled to the image, blurred,
levelled. Run again, complete maps are left alone."""


def _options(made):
    command.place(made, "images", "folder of images, tar shards, Parquet files or a TFDS data set")
    command.place(made, "checkpoint", "converted ViT; the paper's is DINO's ViT-B/16")
    command.place(made, "output", "folder for the maps: the value of data.attention", kind=command.local)
    made.add_argument(
        "--source", choices=["folder", "tar", "parquet", "tfds"], default="folder", help="what IMAGES is (%(default)s)"
    )
    made.add_argument("--split", default="train", help="of a TFDS data set (%(default)s)")
    made.add_argument(
        "--side",
        metavar="N",
        type=command.whole(1),
        default=224,
        help="side in pixels at which the network sees the images (%(default)s)",
    )
    made.add_argument("--batch", metavar="N", type=command.whole(1), default=64, help="images at once (%(default)s)")
    made.add_argument("--picture", metavar="PNG", type=command.local, help="also show some images beside their maps")


def _run(arguments):
    import numpy as np
    import tensorflow_datasets as tfds

    from cp2_jax import pictures
    from cp2_jax.data.images import decoding, sources
    from cp2_jax.data.prepare import writing
    from cp2_jax.pretraining import attention_maps
    from cp2_jax.runs import checkpoints

    source = sources.SOURCES[arguments.source](sources.Where(arguments.images, arguments.split))
    attend = attention_maps.attention_of(*checkpoints.read_variables(arguments.checkpoint))
    maps = attention_maps.make_maps(source, attend, arguments.side, arguments.batch)
    features = {"image": tfds.features.Image(shape=(None, None, 1), encoding_format="jpeg")}
    settings = f"{attention_maps.fingerprint(source)}, side {arguments.side}, {arguments.checkpoint}"
    path = writing.write_dataset(
        arguments.output,
        attention_maps.NAME,
        {"train": maps},
        features,
        settings,
        "Attention maps.",
        {"train": len(source)},
    )
    print(f"{len(source):,d} maps in {path}")
    if arguments.picture:
        written = sources.TfdsSource(path)
        chosen = np.linspace(0, len(source) - 1, 8).astype(int)
        images = [decoding.decode(source[i], source.name(i)) for i in chosen]
        maps = [decoding.decode(written[i], written.name(i))[..., 0] for i in chosen]
        pictures.save_png(arguments.picture, pictures.maps(images, maps))


COMMAND = command.Command(TEXT, _options, _run)
