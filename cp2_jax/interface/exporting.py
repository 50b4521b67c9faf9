"""A model as a program that runs without this project: StableHLO by `jax.export`, or ONNX by `jax2onnx`."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import export as jax_export
from jaxtyping import Array, UInt8

from cp2_jax import features as dense
from cp2_jax.convert import exporting as weights
from cp2_jax.interface import kinds, layouts
from cp2_jax.models import segmenter
from cp2_jax.models.network import Network
from cp2_jax.options import ConfigError, one_of, require
from cp2_jax.paths import AnyPath, at
from cp2_jax.runs import files
from cp2_jax.runs.checkpoints import CheckpointError, read_variables
from cp2_jax.segmentation import saved
from cp2_jax.segmentation.predictor import WholeImages

_RESIZE = jax.image.resize
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

# uint8 images [batch, height, width, 3] → the outputs, in the order of `names`.
Program = Callable[[UInt8[Array, "batch height width 3"]], tuple[Array, ...]]


def export(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    layout: str | None = None,
    projection: bool = True,
    size: tuple[int, int] = (512, 512),
    features: str | None = None,
) -> AnyPath:
    """Write a model as a file for other programs: PyTorch's weights, or a program (`export_program`).

    Example:
      cp2_jax.export("runs/mine", "mine.pth")  # for MMSegmentation
      cp2_jax.export("runs/photos", "backbone.pth", layout="torchvision")
      torch.load("backbone.pth", weights_only=True)

    Args:
      checkpoint: a run, one of its checkpoints, or a converted model.
      output: file to write; without `layout` its suffix says what: `.pth`, `.safetensors`, `.stablehlo` or `.onnx`.
      layout: "mmseg" (backbone and head under MMSegmentation's names), "merged" (the same without prefixes), "torchvision"
        or "timm" (the backbone alone), "stablehlo" or "onnx" (a program).
      projection: weights: keep the projection (`contrast_conv`) beside the head.
      size, features: of a program, see `export_program`.

    Returns:
      The path of the file.

    Raises:
      ConfigError, ModuleNotFoundError, WriteError: see `export_program`; also for a suffix that says nothing.
      CheckpointError: the checkpoint cannot be read, or has no counterpart in that layout.
    """
    layout = layouts.choose(output, layout)
    if layout in layouts.PROGRAMS:
        return export_program(checkpoint, output, layout=layout, size=size, features=features)
    kinds.refuse_images(checkpoint)
    variables, meta = read_variables(checkpoint)
    arrays = weights.state_dict(variables, meta, layout, projection)
    weights.write(output, arrays)
    total = sum(array.nbytes for array in arrays.values()) / 2**20
    print(f"{len(arrays)} tensors, {total:.1f} MiB, written to {output}")
    if layout in ("mmseg", "merged") and (text := weights.mmsegmentation(meta)):
        print(f"in a config of MMSegmentation:\n{text}")
    return at(output)


def export_program(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    layout: str | None = None,
    size: tuple[int, int] = (512, 512),
    features: str | None = None,
) -> AnyPath:
    """Write a model with its weights as one program for images of one size, in batches of any number.

    The program takes RGB images, uint8 [batch, height, width, 3]; mean and standard deviation are inside. Of a finetuned
    model it returns `labels`, uint8 [batch, height, width], and `probabilities`, float32 [batch, height, width, classes].
    Of any other, or with `features`, it returns the map `features`, float32 [batch, rows, columns, channels]. Everything is
    computed in float32, the image as a whole, once. Beside the file, `OUTPUT.json` says so again, and how the classes are
    called.

    Example:
      cp2_jax.export_program("runs/mine", "mine.stablehlo", size=(360, 480))
      # elsewhere, with nothing but JAX:
      program = jax.export.deserialize(pathlib.Path("mine.stablehlo").read_bytes())
      labels, probabilities = program.call(images)

    Args:
      checkpoint: a run, one of its checkpoints, or a converted model.
      output: file to write.
      layout: "stablehlo", which `jax.export` reads on CPU, GPU and TPU, or "onnx" (needs `pip install "cp2_jax[onnx]"`).
        Without it, that of the file's suffix; "stablehlo" for a suffix that is no layout's.
      size: height and width of the images.
      features: see `load`.

    Returns:
      The path of the file.

    Raises:
      ConfigError: no such layout or kind of features, or a size that the network does not take (features of a ViT:
        multiples of its patch); or "onnx", and jax2onnx does not work with this JAX.
      CheckpointError: the checkpoint cannot be read, or has no such features.
      ModuleNotFoundError: "onnx" without jax2onnx.
      WriteError: the file cannot be written.
    """
    layout = layouts.choose(output, layout or (None if layouts.is_known(output) else "stablehlo"))
    if layout not in layouts.PROGRAMS:
        raise ConfigError(
            f"{output}: layout={layout} is no program; there are {', '.join(layouts.PROGRAMS)}; `export` writes weights"
        )
    size = _height_and_width(size)
    one_of("features", features or "head", dense.FEATURES)
    output = at(output)
    kinds.refuse_images(checkpoint)
    program, names, about = _program(checkpoint, features)
    write = {"stablehlo": _stablehlo, "onnx": _onnx}[layout]
    _check_sides(program, size)
    data = write(program, tuple(size), names)
    with files.written(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(data)
    about |= {"input": f"RGB, uint8 [batch, {size[0]}, {size[1]}, 3]", "outputs": list(names), "layout": layout}
    output.with_name(f"{output.name}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(f"{len(data) / 2**20:.1f} MiB in {output}; what goes in and out: {output.name}.json")
    return output


def _height_and_width(size: Any) -> tuple[int, int]:
    """Return two whole numbers of Python, of a tuple, list or array."""
    sides = tuple(size) if isinstance(size, tuple | list | np.ndarray) else ()
    good = len(sides) == 2 and all(isinstance(side, int | np.integer) and side > 0 for side in sides)
    require(good, "size", size, "give height and width, such as (512, 512)")
    return int(sides[0]), int(sides[1])


def _program(checkpoint, features: str | None) -> tuple[Program, tuple[str, ...], dict[str, Any]]:
    """Return the function, the names of its outputs, and what to say about it."""
    variables, meta = read_variables(checkpoint)
    if features is not None or "classifier" not in variables["params"]:
        if features == "stages":
            raise CheckpointError("features=stages are several maps; take backbone, which is the last of them")
        extractor, variables = dense.load(checkpoint, features)
        about = {"features": extractor.features, "stride": extractor.stride}
        return lambda images: (extractor(variables, images),), ("features",), about
    model = saved.open_saved(checkpoint)
    network = Network.from_config(dict(model.config.model) | {"dtype": "float32"})
    module = segmenter.build(network, top="classifier", image_size=model.config.image_size)
    way = WholeImages(module, network.mean, network.std, network.multiple)

    def segment(images):
        shape = images.shape[1:3]
        found = way.probabilities(model.variables, images, None, None, shape, False)
        return jnp.argmax(found, axis=-1).astype(jnp.uint8), found

    return segment, ("labels", "probabilities"), {"classes": list(model.config.data.class_names)}


def _check_sides(program: Program, size: tuple[int, int]) -> None:
    try:
        jax.eval_shape(program, jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8))
    except ValueError as error:  # the network does not take such sides
        raise ConfigError(f"size={tuple(size)}: {error}") from error


def _stablehlo(program: Program, size: tuple[int, int], names: tuple[str, ...]) -> bytes:
    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    return bytes(jax_export.export(jax.jit(program), platforms=_PLATFORMS)(images).serialize())


def _onnx(program: Program, size: tuple[int, int], names: tuple[str, ...]) -> bytes:
    import jax2onnx

    def translated(images):
        with _as_jax2onnx_reads_it():
            return program(images)

    images = jax.ShapeDtypeStruct(("batch", *size, 3), jnp.uint8)
    options = {"model_name": "cp2_jax", "input_names": ["images"], "output_names": list(names)}
    try:
        model = jax2onnx.to_onnx(translated, [images], **options)
    except (AttributeError, ImportError) as error:  # it reads JAX's inner parts, which change
        raise ConfigError(
            f"this jax2onnx does not work with jax {jax.__version__} ({error}): export in an environment made "
            'by pip install "cp2_jax[onnx]"'
        ) from error
    return model.SerializeToString()


@contextlib.contextmanager
def _as_jax2onnx_reads_it() -> Iterator[None]:
    """Replace three functions by equal ones while a program is traced for jax2onnx (0.17).

    It has no word for a choice by platform, where the form for any platform is as good. It leaves out the padding of a
    max-pool, which is therefore put in front of it. And its own resizing takes no batch of unknown size, which JAX's does.
    """
    pool = nn.max_pool  # jax2onnx's own, while it traces

    def any_platform(*args, default, **others):
        return default(*args)

    def max_pool(x, window_shape, strides=None, padding="VALID"):
        if not isinstance(padding, str):
            x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=jnp.finfo(x.dtype).min)
            padding = "VALID"
        return pool(x, window_shape=window_shape, strides=strides, padding=padding)

    with contextlib.ExitStack() as patches:
        for module, name, function in (
            (jax.lax, "platform_dependent", any_platform),
            (nn, "max_pool", max_pool),
            (jax.image, "resize", _RESIZE),
        ):
            patches.enter_context(mock.patch.object(module, name, function))
        yield
