"""Random weights of small networks, under the names that each source gives them."""

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
