"""Miniature checkpoints in every source's format, without any source's library.

    PYTHONPATH=tests python -m helpers.checkpoints DIR

Keys and nesting are those of the sources (see docs/checkpoints.md for how each was checked); the weights are random.
"""

import collections
import pathlib
import pickle
import struct
import sys

import numpy as np

from helpers.networks import haiku, head, mmseg_vit, resnet, separius, simclr, some, under, vit
from helpers.torch_files import fake, save_torch, stand_ins

RESNET, VIT = resnet(), vit()


_OPTIMIZER = {"state": {0: {"momentum_buffer": np.ones(3, np.float32)}}, "param_groups": [{"lr": 0.03, "params": [0]}]}


def _run(state, **others):
    return {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": collections.OrderedDict(state),
        "optimizer": _OPTIMIZER,
    } | others


def _moco(encoder, fc):
    return {
        **under("module.encoder_q.", encoder),
        **some(*(f"module.encoder_q.{name}" for name in fc)),
        **under("module.encoder_k.", encoder),
        **some("module.queue"),
        "module.queue_ptr": np.zeros(1, np.int64),
    }


_SEGMENTER = under("backbone.", RESNET) | under("decode_head.", head("aspp", 64))


_CLASSIFIER_ONLY = {n: a for n, a in _SEGMENTER.items() if "contrast_conv" not in n}


# name → (expected format, tree for save_torch, expected backbone in torchvision's or timm's names)
TORCH = {
    "moco_v1": ("moco_v1", _run(_moco(RESNET, ["fc.weight", "fc.bias"])), RESNET),
    "moco_v2": ("moco_v2", _run(_moco(RESNET, ["fc.0.weight", "fc.2.weight"])), RESNET),
    "moco_v2_18": ("moco_v2", _run(_moco(resnet(18), ["fc.0.weight"]), arch="resnet18"), resnet(18)),
    "moco_v3": (
        "moco_v3",
        _run(
            under("module.base_encoder.", vit(48))
            | some("module.base_encoder.head.0.weight", "module.predictor.0.weight")
            | under("module.momentum_encoder.", vit(48)),
            scaler={"scale": 65536.0},
        ),
        vit(48),
    ),
    "dino": ("timm", vit(), VIT),
    "dino_full": (
        "dino",
        {
            "student": under("module.backbone.", vit(seed=9)) | some("module.head.mlp.0.weight"),
            "teacher": under("backbone.", VIT) | some("head.mlp.0.weight"),
            "optimizer": _OPTIMIZER,
            "epoch": 300,
            "dino_loss": some("center"),
        },
        VIT,
    ),
    "infomin": (
        "infomin",
        {
            "model": under("module.encoder.", RESNET) | some("module.head.0.weight", "module.head_jig.fc1.weight"),
            "contrast": some("memory"),
            "epoch": 800,
        },
        RESNET,
    ),
    "pixpro": (
        "pixpro",
        {
            "model": under("module.encoder.", RESNET)
            | under("module.encoder_k.", RESNET)
            | some("module.projector.linear1.weight", "module.value_transform.weight"),
            "optimizer": _OPTIMIZER,
        },
        RESNET,
    ),
    "insloc": (
        "insloc",
        {
            "state_dict": under("backbone.", RESNET)
            | under("backbone_k.", RESNET)
            | some("neck.a.weight", "neck_k.a.weight")
        },
        RESNET,
    ),
    "insloc_c4": (
        "insloc",
        {
            "state_dict": {
                (f"roi_head.shared_head.{n}" if n.startswith("layer4") else f"backbone.{n}"): a for n, a in RESNET.items()
            }
            | some("backbone_k.conv1.weight", "roi_head.bbox_head.fc.weight")
        },
        RESNET,
    ),
    "densecl": (
        "densecl",
        {
            "state_dict": under("backbone.", RESNET)
            | under("encoder_q.0.", RESNET)
            | under("encoder_k.0.", RESNET)
            | some("encoder_q.1.mlp.0.weight", "queue", "queue2")
        },
        RESNET,
    ),
    "densecl_released": ("densecl", {"state_dict": RESNET, "author": "somebody"}, RESNET),
    "simclr_separius": ("simclr_separius", {"resnet": separius(RESNET) | some("fc.weight"), "head": some("a")}, RESNET),
    "torchvision": ("torchvision", RESNET | some("fc.weight", "fc.bias"), RESNET),
    "timm": ("timm", VIT | some("head.weight", "head.bias"), VIT),
    "openmmlab": ("openmmlab", {"state_dict": under("backbone.", RESNET), "meta": {}}, RESNET),
    "cp2": (
        "cp2",
        _run(under("module.encoder_q.", _SEGMENTER) | under("module.encoder_k.", _SEGMENTER) | some("module.queue")),
        RESNET,
    ),
    "cp2_plain": ("cp2", _SEGMENTER, RESNET),
    "merged": (
        "merged",
        RESNET | {n.removeprefix("decode_head."): a for n, a in _CLASSIFIER_ONLY.items() if "decode" in n},
        RESNET,
    ),
    "mmseg": (
        "mmseg",
        {"meta": {"CLASSES": ("a",)}, "state_dict": _CLASSIFIER_ONLY | some("auxiliary_head.conv_seg.weight")},
        RESNET,
    ),
    "mmseg_vit": (
        "mmseg",
        {
            "meta": {"config": "model=dict(backbone=dict(num_heads=4))"},
            "state_dict": under("backbone.", mmseg_vit(VIT)) | under("decode_head.", head("fcn", 64)),
        },
        VIT,
    ),
}


TORCH["mmseg_vit"][1]["state_dict"] = {n: a for n, a in TORCH["mmseg_vit"][1]["state_dict"].items() if "contrast" not in n}


def save_byol(path) -> None:
    """BYOL's checkpoint: a named tuple of Haiku trees, protocol 2."""
    params, averages = haiku(RESNET)
    fields = ["online_params", "target_params", "online_state", "target_state", "opt_state"]
    state = collections.namedtuple("_ByolExperimentState", fields)
    fake("byol.byol_experiment", "_ByolExperimentState", state)
    with stand_ins(byol={}, byol__byol_experiment={"_ByolExperimentState": state}):
        tree = {
            "experiment_state": state(params, params, averages, averages, None),
            "step": 300,
            "rng": np.zeros(2, np.uint32),
        }
        pathlib.Path(path).write_bytes(pickle.dumps(tree, 2))


def save_detcon(path) -> None:
    """DetCon's: a dict of parameters and state in a .npy."""
    params, averages = haiku(RESNET)
    np.save(path, {"params": params, "state": averages}, allow_pickle=True)


def save_tensorflow(prefix) -> None:
    """SimCLR's: a TensorFlow checkpoint (an uncompressed LevelDB table of one block, and one data file)."""
    data, entries = b"", {b"": b"\x08\x01"}  # header: one shard
    for name, array in sorted(
        (simclr(RESNET) | {"head_contrastive/nl_0/dense/kernel": np.ones((2, 2), np.float32)}).items()
    ):
        shape = b"".join(b"\x12" + _varint(len(dim)) + dim for dim in (b"\x08" + _varint(n) for n in array.shape))
        entries[name.encode()] = (
            b"\x08\x01\x12" + _varint(len(shape)) + shape + b"\x20" + _varint(len(data)) + b"\x28" + _varint(array.nbytes)
        )
        data += np.ascontiguousarray(array).tobytes()
    table = _block(entries)
    index = _block({b"\xff": _varint(0) + _varint(len(table) - 5)})
    empty = _block({})
    footer = _varint(len(table)) + _varint(len(empty) - 5) + _varint(len(table) + len(empty)) + _varint(len(index) - 5)
    footer = footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    pathlib.Path(f"{prefix}.index").write_bytes(table + empty + index + footer)
    pathlib.Path(f"{prefix}.data-00000-of-00001").write_bytes(data)


def _varint(number: int) -> bytes:
    out = b""
    while number >= 128:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def _block(entries: dict[bytes, bytes]) -> bytes:
    out, last = b"", b""
    for key, value in sorted(entries.items()):
        shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        out += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        last = key
    return out + struct.pack("<II", 0, 1) + b"\0" + b"\0\0\0\0"  # restarts, no compression, a checksum nobody reads


def main(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, tree, _) in TORCH.items():
        save_torch(folder / f"{name}.pth", tree)
    save_byol(folder / "byol.pkl")
    save_detcon(folder / "detcon.npy")
    save_tensorflow(folder / "simclr.ckpt-7")


if __name__ == "__main__":
    main(sys.argv[1])
