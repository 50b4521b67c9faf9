"""What a model can be exported as, and the files that each is written to."""

import pathlib

from cp2_jax.options import ConfigError
from cp2_jax.paths import AnyPath

# Layout → the suffixes of its files; the first layout of a suffix is its default.
LAYOUTS = {
    "mmseg": (".pth", ".safetensors"),
    "merged": (".pth", ".safetensors"),
    "torchvision": (".pth", ".safetensors"),
    "timm": (".pth", ".safetensors"),
    "stablehlo": (".stablehlo", ".bin"),
    "onnx": (".onnx",),
}
PROGRAMS = ("stablehlo", "onnx")


def is_known(output: str | AnyPath) -> bool:
    """Say whether a file's suffix is that of some layout."""
    return any(pathlib.PurePath(str(output)).suffix in suffixes for suffixes in LAYOUTS.values())


def choose(output: str | AnyPath, layout: str | None = None) -> str:
    """Return the layout that was asked for, or that of the file's suffix.

    Raises:
      ConfigError: there is no such layout; no layout was named, and none belongs to the suffix; or the suffix is that of
        files of another kind.
    """
    suffix = pathlib.PurePath(str(output)).suffix
    fitting = [one for one, suffixes in LAYOUTS.items() if suffix in suffixes]
    if layout is None and not fitting:
        raise ConfigError(f"{output}: a layout tells what to write, or a name in .pth, .safetensors, .stablehlo or .onnx")
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"layout={layout}: there are {', '.join(LAYOUTS)}")
    if layout and fitting and layout not in fitting:
        raise ConfigError(f"{output}: layout={layout} is written to {' or '.join(LAYOUTS[layout])}, not to {suffix}")
    return layout or fitting[0]
