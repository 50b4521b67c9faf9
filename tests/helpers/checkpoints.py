"""Miniature checkpoints in every source's format, without any source's library.

    PYTHONPATH=tests python -m helpers.checkpoints DIR

Keys and nesting are those of the sources (see docs/checkpoints.md for how each was checked); the weights are random.
"""

import collections
import contextlib
import io
import pathlib
import pickle
import struct
import sys
import types
import zipfile

import numpy as np

STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def resnet(depth=50, width=2, seed=0) -> dict[str, np.ndarray]:
    """A ResNet's backbone in torchvision's names."""
    rng = np.random.default_rng(seed)
    state = {}

    def conv(name, outputs, inputs, side):
        state[f"{name}.weight"] = rng.normal(size=(outputs, inputs, side, side)).astype(np.float32)

    def norm(name, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{leaf}"] = rng.uniform(0.5, 1.5, channels).astype(np.float32)
        state[f"{name}.num_batches_tracked"] = np.array(5004, np.int64)

    conv("conv1", width, 3, 7)
    norm("bn1", width)
    inputs = width
    for stage, blocks in enumerate(STAGES[depth]):
        inner = width * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            if depth == 18:
                layers, outputs = [(inner, inputs, 3), (inner, inner, 3)], inner
            else:
                layers, outputs = [(inner, inputs, 1), (inner, inner, 3), (4 * inner, inner, 1)], 4 * inner
            for number, layer in enumerate(layers, 1):
                conv(f"{name}.conv{number}", *layer)
                norm(f"{name}.bn{number}", layer[0])
            if block == 0 and outputs != inputs:
                conv(f"{name}.downsample.0", outputs, inputs, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return state


def vit(width=64, depth=2, patch=4, grid=3, norm=True, seed=0) -> dict[str, np.ndarray]:
    """A ViT's backbone in timm's names."""
    rng = np.random.default_rng(seed)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid * grid, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(depth):
        for name, outputs, inputs in (
            ("norm1", width, 0),
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("norm2", width, 0),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"blocks.{i}.{name}.weight"] = (outputs, inputs) if inputs else (outputs,)
            shapes[f"blocks.{i}.{name}.bias"] = (outputs,)
    if norm:
        shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def head(kind, inputs, channels=4, classes=5, seed=1) -> dict[str, np.ndarray]:
    """A segmentation head in MMSegmentation's names, with classifier and projection."""
    rng = np.random.default_rng(seed)
    if kind == "aspp":
        layers = {"image_pool.1": (channels, inputs, 1), "aspp_modules.0": (channels, inputs, 1)}
        layers |= {f"aspp_modules.{i}": (channels, inputs, 3) for i in (1, 2, 3)}
        layers["bottleneck"] = (channels, 5 * channels, 3)
    else:
        layers = {"convs.0": (channels, inputs, 3), "convs.1": (channels, channels, 3)}
    state = {}
    for name, (outputs, before, side) in layers.items():
        state[f"{name}.conv.weight"] = rng.normal(size=(outputs, before, side, side)).astype(np.float32)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.bn.{leaf}"] = rng.uniform(0.5, 1.5, outputs).astype(np.float32)
        state[f"{name}.bn.num_batches_tracked"] = np.array(17, np.int64)
    for name, outputs in (("conv_seg", classes), ("contrast_conv.0", channels), ("contrast_conv.2", 8)):
        state[f"{name}.weight"] = rng.normal(size=(outputs, channels, 1, 1)).astype(np.float32)
        state[f"{name}.bias"] = rng.normal(size=outputs).astype(np.float32)
    return state


def under(prefix: str, state: dict) -> dict:
    """The same tensors with a prefix."""
    return {prefix + name: array for name, array in state.items()}


def some(*names: str) -> dict[str, np.ndarray]:
    """Tensors that are to be left out."""
    return {name: np.ones((2, 2), np.float32) for name in names}


# PyTorch's files, written by pickling stand-ins that call themselves what PyTorch's functions are called.


class _Storage:
    def __init__(self, array):
        self.array = array


def _fake(module, name, kind=None):
    made = type(name, (), {}) if kind is None else kind
    made.__module__, made.__qualname__, made.__name__ = module, name, name
    return made


def _rebuild(*args):
    raise AssertionError("the stand-in is only named, never called")


_STORAGE = {
    np.dtype(kind): _fake("torch", f"{name}Storage")
    for kind, name in {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "u1": "Byte", "?": "Bool"}.items()
}
_REBUILD = _fake("torch._utils", "_rebuild_tensor_v2", _rebuild)


@contextlib.contextmanager
def stand_ins(**modules):
    """Put modules of these names (dots written as double underscores) into sys.modules for a while."""
    made = {name.replace("__", "."): types.SimpleNamespace(**members) for name, members in modules.items()}
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _TorchPickler(pickle.Pickler):
    def __init__(self, stream, protocol=2):
        super().__init__(stream, protocol)
        self.storages: list[np.ndarray] = []

    def reducer_override(self, value):
        if type(value) is not np.ndarray:
            return NotImplemented
        strides = tuple(s // value.itemsize for s in np.ascontiguousarray(value).reshape(value.shape).strides)
        return _REBUILD, (_Storage(value), 0, value.shape, strides, False, collections.OrderedDict())

    def persistent_id(self, value):
        if not isinstance(value, _Storage):
            return None
        self.storages.append(value.array)
        return ("storage", _STORAGE[value.array.dtype], str(len(self.storages) - 1), "cpu", value.array.size)


def save_torch(path, tree, legacy=False) -> None:
    """Write what `torch.save(tree, path)` would, NumPy arrays being tensors."""
    stream = io.BytesIO()
    with stand_ins(torch={f"{t.__name__}": t for t in _STORAGE.values()}, torch___utils={"_rebuild_tensor_v2": _REBUILD}):
        pickler = _TorchPickler(stream)
        pickler.dump(tree)
    contents = [np.ascontiguousarray(a).tobytes() for a in pickler.storages]
    if legacy:
        data = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        data += stream.getvalue() + pickle.dumps([str(i) for i in range(len(contents))], 2)
        for array, raw in zip(pickler.storages, contents, strict=True):
            data += struct.pack("<q", array.size) + raw
        pathlib.Path(path).write_bytes(data)
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", b"little")
        for index, raw in enumerate(contents):
            archive.writestr(f"archive/data/{index}", raw)
        archive.writestr("archive/version", b"3\n")


# Haiku's trees and TensorFlow's names.


def haiku(state: dict) -> tuple[dict, dict]:
    """(parameters, state) of a ResNet-50 as BYOL names them."""
    params: dict = {}
    averages: dict = {}
    for name, array in state.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        parts = module.split(".")
        if len(parts) == 1:
            path = {"conv1": "initial_conv", "bn1": "initial_batchnorm"}[parts[0]]
        else:
            last = ".".join(parts[2:])
            last = {"downsample.0": "shortcut_conv", "downsample.1": "shortcut_batchnorm"}.get(last) or (
                f"{'conv' if last[:4] == 'conv' else 'batchnorm'}_{int(last[-1]) - 1}"
            )
            path = f"block_group_{int(parts[0][-1]) - 1}/~/block_{parts[1]}/~/{last}"
        path = f"res_net50/~/{path}"
        if "conv" in path.rpartition("/")[2]:
            params[path] = {"w": array.transpose(2, 3, 1, 0)}
            continue
        wide = array.reshape(1, 1, 1, -1)
        if leaf in ("weight", "bias"):
            params.setdefault(path, {})["scale" if leaf == "weight" else "offset"] = wide
        else:
            kind = "mean_ema" if leaf == "running_mean" else "var_ema"
            averages[f"{path}/~/{kind}"] = {"average": wide, "hidden": wide * 0, "counter": np.int32(3)}
    params["projector/linear"] = {"w": np.ones((2, 2), np.float32)}
    params["classifier"] = {"w": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}
    return params, averages


def simclr(state: dict, depth=50) -> dict:
    """SimCLR's TensorFlow names, numbered in order of creation: a block's shortcut comes before its convolutions."""
    order = ["conv1"]
    for stage, blocks in enumerate(STAGES[depth], 1):
        for block in range(blocks):
            last = ["downsample.0"] if block == 0 else []
            order += [f"layer{stage}.{block}.{name}" for name in [*last, "conv1", "conv2", "conv3"]]
    tensors = {}
    for number, name in enumerate(order):
        suffix = f"_{number}" if number else ""
        tensors[f"base_model/conv2d{suffix}/kernel"] = state[f"{name}.weight"].transpose(2, 3, 1, 0)
        norm = name.replace("downsample.0", "downsample.1").replace("conv", "bn")
        leaves = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
        for theirs, ours in leaves.items():
            tensors[f"base_model/batch_normalization{suffix}/{theirs}"] = state[f"{norm}.{ours}"]
    return tensors


def separius(state: dict) -> dict:
    """SimCLRv2-Pytorch's names."""
    places = {"conv1": "net.0", "bn1": "net.1.0", "conv2": "net.2", "bn2": "net.3.0", "conv3": "net.4", "bn3": "net.5.0"}
    places |= {"downsample.0": "projection.shortcut", "downsample.1": "projection.bn.0"}
    named = {}
    for name, array in state.items():
        module, _, leaf = name.rpartition(".")
        if "." not in module:
            place = {"conv1": "net.0.0", "bn1": "net.0.1.0"}[module]
        else:
            layer, block, last = module.split(".", 2)
            place = f"net.{layer[-1]}.blocks.{block}.{places[last]}"
        named[f"{place}.{leaf}"] = array
    return named


def hugging_face(state: dict, modern: bool) -> dict:
    """Hugging Face's ViT names: transformers 4, or 5 (`modern`)."""
    named = {}
    layer = "layers" if modern else "encoder.layer"
    names = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.o_proj" if modern else "attention.output.dense",
        "mlp.fc1": "mlp.fc1" if modern else "intermediate.dense",
        "mlp.fc2": "mlp.fc2" if modern else "output.dense",
    }
    fixed = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    for name, array in state.items():
        module, _, leaf = name.rpartition(".")
        if name in fixed:
            named[fixed[name]] = array
        elif module == "patch_embed.proj":
            named[f"embeddings.patch_embeddings.projection.{leaf}"] = array
        elif module == "norm":
            named[f"layernorm.{leaf}"] = array
        else:
            _, index, rest = module.split(".", 2)
            if rest == "attn.qkv":
                parts = ("q_proj", "k_proj", "v_proj") if modern else ("query", "key", "value")
                place = "attention" if modern else "attention.attention"
                for part, piece in zip(parts, np.split(array, 3), strict=True):
                    named[f"{layer}.{index}.{place}.{part}.{leaf}"] = piece
            else:
                named[f"{layer}.{index}.{names[rest]}.{leaf}"] = array
    return named


def mmseg_vit(state: dict) -> dict:
    """MMSegmentation's ViT names since its version 0.17."""
    names = {"norm1": "ln1", "norm2": "ln2", "attn.proj": "attn.attn.out_proj"}
    names |= {"mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}
    named = {}
    for name, array in state.items():
        module, _, leaf = name.rpartition(".")
        if module.startswith("blocks."):
            _, index, rest = module.split(".", 2)
            place = f"attn.attn.in_proj_{leaf}" if rest == "attn.qkv" else f"{names[rest]}.{leaf}"
            named[f"layers.{index}.{place}"] = array
        else:
            named[
                {"patch_embed.proj": "patch_embed.projection", "norm": "ln1"}.get(module, module)
                + "." * bool(module)
                + leaf
            ] = array
    return named


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
    _fake("byol.byol_experiment", "_ByolExperimentState", state)
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
