"""Damaged checkpoints and config texts: only the documented error may come out, in bounded time and memory.

    PYTHONPATH=tests python benchmarks/fuzz_checkpoints.py [--count 120000] [--seed 0] [--json fuzz.json]

Small valid files of every kind of container (tests/helpers/checkpoints.py makes them; some were written by PyTorch,
MMEngine, Haiku and TensorFlow themselves) are cut at every length, then changed at random, see fuzzing.py. Four kinds of
input: containers, which are opened, and every array in them read; networks, which are converted from the first byte to the
last; TensorFlow's indexes, beside data that is whole; config texts of OpenMMLab. `--only network:1234` repeats one input.
"""

import functools
import os
import pathlib
import pickle
import sys
import tempfile

import fuzzing
import numpy as np
from fuzzing import Kind
from helpers import checkpoints as make
from helpers.paths import DATA
from safetensors.numpy import save

from cp2_jax.convert import openmmlab
from cp2_jax.convert.containers import files
from cp2_jax.convert.containers.values import CheckpointFormatError, Inert, Refused
from cp2_jax.convert.importing import import_checkpoint

SHARES = {"container": 0.65, "network": 0.2, "tensorflow": 0.1, "text": 0.05}
# What other programs wrote.
WRITTEN = ("haiku_dill.pkl", "mmengine.pth", "numpy_object.npy", "torch_legacy.pth", "torch_zip.pth")
TENSORFLOW = {"tensorflow1": "model.ckpt-7", "tensorflow2/variables": "variables"}
CONFIG = """norm_cfg = dict(type='BN', eps=1e-5)
model = dict(
    backbone=dict(
        contract_dilation=True, depth=50, dilations=(
            1,
            1,
            2,
            4,
        ), norm_cfg=norm_cfg, strides=(1, 2, 1, 1), style='pytorch', type='ResNet'),
    decode_head=dict(channels=4, dilations=(1, 12, 24, 36), in_index=3, type='ASPPHead'),
    data_preprocessor=dict(bgr_to_rgb=False, mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395]))
x = [-1, {'a': None}]
"""
VIT_CONFIG = (
    "model = dict(backbone=dict(type='VisionTransformer', num_heads=2), decode_head=dict(type='FCNHead', dilation=6))"
)


@functools.cache
def _folder() -> pathlib.Path:
    """A folder of this process, in memory where there is such a place."""
    shared = pathlib.Path("/dev/shm")
    return pathlib.Path(tempfile.mkdtemp(prefix="fuzz", dir=shared if os.access(shared, os.W_OK) else None))


def _saved(write, name, *args, **options) -> bytes:
    path = _folder() / name
    write(path, *args, **options)
    return path.read_bytes()


def containers() -> dict[str, bytes]:
    """Return {name: bytes} of one small file of each container."""
    tree = {
        "state_dict": {"a.weight": np.ones((2, 3), np.float32), "n": np.array(7)},
        "epoch": 3,
        "name": "é",
        "none": None,
    }
    trees = {"params": {"net/~/conv": {"w": np.ones((1, 1, 2, 2), np.float32)}}, "state": {"step": np.zeros(2, np.uint32)}}
    found = {name: (DATA / "checkpoints" / name).read_bytes() for name in WRITTEN}
    found |= {f"protocol{p}.pkl": pickle.dumps(tree | {"set": {1, 2}, "b": b"x"}, p) for p in (0, 2, 4, 5)}
    found["zip.pth"] = _saved(make.save_torch, "zip.pth", tree)
    found["legacy.pth"] = _saved(make.save_torch, "legacy.pth", tree, legacy=True)
    found["plain.safetensors"] = save({"a.weight": np.ones((2, 3), np.float32), "b": np.ones(3, np.float16)})
    found["object.npy"] = _saved(np.save, "object.npy", trees, allow_pickle=True)
    return found


def networks() -> dict[str, bytes]:
    """Return {name: bytes} of small files that are converted."""
    small = make.vit(width=4, depth=1, patch=2, grid=2)
    mmseg = make.under("backbone.", make.mmseg_vit(small)) | make.under("decode_head.", make.head("fcn", 4, channels=2))
    mmseg = {name: array for name, array in mmseg.items() if "contrast" not in name}
    return {
        "moco_v3.pth": _saved(make.save_torch, "a.pth", {"state_dict": make.under("module.base_encoder.", _twelve())}),
        "mmseg.pth": _saved(make.save_torch, "b.pth", {"meta": {"config": VIT_CONFIG}, "state_dict": mmseg}),
        "mmseg.pkl": pickle.dumps({"meta": {"config": VIT_CONFIG}, "state_dict": mmseg}, 4),
        "legacy.pth": _saved(make.save_torch, "c.pth", {"state_dict": make.under("module.base_encoder.", _twelve())}, True),
        "plain.safetensors": save(make.under("module.base_encoder.", _twelve())),
    }


def _twelve() -> dict[str, np.ndarray]:
    return make.vit(width=12, depth=1, patch=2, grid=2, norm=False)


def read_container(data: bytes, name: str) -> None:
    """Open a file, and read every array in it."""
    path = _folder() / name
    path.write_bytes(data)
    _read_arrays(files.read(path)[0], 0)


def _read_arrays(value, depth):
    if files.is_array(value):
        files.to_numpy(value)
        return
    inside = [*value.args, value.state, value.items, value.elements] if isinstance(value, Inert) else value
    if depth < 8 and isinstance(inside, dict | list | tuple):
        for one in inside.values() if isinstance(inside, dict) else inside:
            _read_arrays(one, depth + 1)


def read_network(data: bytes, name: str) -> None:
    """Convert a file."""
    path = _folder() / name
    path.write_bytes(data)
    import_checkpoint(path)


def read_tensorflow(data: bytes, name: str) -> None:
    """Read an index beside its data files."""
    stem, source = TENSORFLOW[name], DATA / "checkpoints" / name
    folder = _folder() / name
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for file in source.glob(f"{stem}.data*"):
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / f"{stem}.index").write_bytes(data)
    files.read(folder / f"{stem}.index")


def read_text(data: bytes, name: str) -> None:
    """Read a config text."""
    openmmlab.read({"meta": {"config": data.decode(errors="replace")}})


def kinds() -> dict[str, Kind]:
    """Return the kinds of input by name."""
    indexes = {name: (DATA / "checkpoints" / name / f"{stem}.index").read_bytes() for name, stem in TENSORFLOW.items()}
    return {
        "container": Kind(containers(), read_container, CheckpointFormatError),
        "network": Kind(networks(), read_network, CheckpointFormatError, one_line=False),
        "tensorflow": Kind(indexes, read_tensorflow, CheckpointFormatError),
        "text": Kind({"resnet": CONFIG.encode(), "vit": VIT_CONFIG.encode()}, read_text, Refused),
    }


if __name__ == "__main__":
    sys.exit(fuzzing.main("fuzz_checkpoints", SHARES, 120_000, __doc__.splitlines()[0]))
