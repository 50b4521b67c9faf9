"""What network weights are: models describe themselves, and sizes that no network has are refused before one is traced."""

import time
import tracemalloc

import jax
import numpy as np
import pytest

from cp2_jax.convert import names, networks
from cp2_jax.convert.containers.values import Refused
from cp2_jax.models import segmenter
from cp2_jax.models.network import Network

MODELS = {
    "resnet": {"backbone": "resnet", "resnet": {"depth": 50, "width": 3, "stem_width": 5}},
    "basic": {"backbone": "resnet", "resnet": {"depth": 18, "width": 4, "stem_width": 4}},
    "vit": {"backbone": "vit", "vit": {"patch": 4, "width": 12, "depth": 2, "heads": 3, "mlp_ratio": 2}},
    "normed": {"backbone": "vit", "vit": {"patch": 4, "width": 12, "depth": 1, "heads": 3, "final_norm": True}},
}
HEADS = {
    "aspp": {"head": "aspp", "aspp": {"channels": 6, "dilations": (1, 12, 24, 36)}},
    "one branch": {"head": "aspp", "aspp": {"channels": 6, "dilations": (7,)}},
    "fcn": {"head": "fcn", "fcn": {"channels": 6, "num_convs": 3, "dilation": 1, "concat_input": True}},
}


def torch_shapes(model, top="projection", image_size=16):
    """Names and shapes that the model's state_dict has."""
    built = segmenter.build(Network.from_config(model), top=top, image_size=image_size)
    images = np.zeros((1, image_size, image_size, 3), np.float32)
    variables = jax.eval_shape(lambda: built.init(jax.random.key(0), images, train=False))
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), dict(variables))
    return {name: array.shape for name, array in names.torch_from_variables(zeros).items()}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", MODELS)
def test_a_model_is_recognised_by_its_shapes(backbone, head):
    model = MODELS[backbone] | HEADS[head] | {"projection_dim": 7}
    shapes = torch_shapes(model)
    found = networks.find(shapes, {})
    assert found.expected == shapes
    unknown = set(found.backbone.unknown) | set(found.head.unknown)
    for section in (model["backbone"], model["head"]):
        stated = model[section].items()
        assert {k: v for k, v in stated if k not in unknown}.items() <= found.model[section].items()
    assert found.model["projection_dim"] == 7 and "num_classes" not in found.model
    assert found.model.get("image_size", 16) == 16


def test_backbones_alone_and_with_a_classifier():
    model = MODELS["basic"] | HEADS["fcn"] | {"num_classes": 4}
    shapes = torch_shapes(model, top="classifier")
    assert networks.find(shapes, {}).expected == shapes and networks.find(shapes, {}).model["num_classes"] == 4
    alone = {name: shape for name, shape in shapes.items() if name.startswith("backbone.")}
    found = networks.find(alone, {})
    assert found.expected == alone and found.head is None and "head" not in found.model


def test_a_classifier_of_another_shape_is_no_crash():
    """Found by benchmarks/fuzz_checkpoints.py: a bias without its kernel, and a kernel of two axes."""
    shapes = torch_shapes(MODELS["basic"] | HEADS["fcn"] | {"num_classes": 4}, top="classifier")
    without = {name: shape for name, shape in shapes.items() if name != "decode_head.conv_seg.weight"}
    for odd in (without, shapes | {"decode_head.conv_seg.weight": (4, 6)}):
        assert networks.find(odd, {}).expected["decode_head.conv_seg.weight"] == (1, 6, 1, 1)


def test_fewer_blocks_must_be_confirmed():
    section = {"depth": 18, "width": 4, "stem_width": 4, "stage_sizes": (1, 1, 1, 1)}
    shapes = torch_shapes({"backbone": "resnet", "resnet": section})
    shapes = {name: shape for name, shape in shapes.items() if name.startswith("backbone.")}
    with pytest.raises(Refused, match="1-1-1-1 basic blocks.*--stage_sizes 1,1,1,1"):
        networks.find(shapes, {"stage_sizes": None})
    assert networks.find(shapes, {"stage_sizes": (1, 1, 1, 1)}).model["resnet"] == section


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ("vit", {"backbone.blocks.99999.norm1.weight": (12,)}, "a ViT of depth 100000: known networks have 1 to 100"),
        ("vit", {"backbone.patch_embed.proj.weight": (2**40, 3, 4, 4)}, "a ViT of width"),
        ("vit", {"backbone.patch_embed.proj.weight": (12, 3, 2**40, 2**40)}, "a patch of side"),
        ("vit", {"backbone.patch_embed.proj.weight": (12, 3, 0, 0)}, "a patch of side 0"),
        ("vit", {"backbone.pos_embed": (1, 2**60 + 1, 12)}, "a position table"),
        ("vit", {"backbone.blocks.0.mlp.fc1.weight": (12 * 2**30, 12)}, "an MLP of ratio"),
        ("vit", {"backbone.blocks.0.mlp.fc1.weight": (0, 12)}, "no whole ratio"),
        ("resnet", {"backbone.conv1.weight": (2**40, 3, 7, 7)}, "a first convolution of"),
        ("resnet", {"backbone.layer1.0.conv1.weight": (2**40, 5, 1, 1)}, "a first stage of width"),
        ("resnet", {"backbone.layer4.999999.bn1.weight": (3,)}, "3-4-6-1000000 bottleneck blocks"),
        ("aspp", {"decode_head.aspp_modules.99999.bn.weight": (6,)}, "ASPP branches: 100000"),
        ("aspp", {"decode_head.bottleneck.conv.weight": (2**50, 30, 3, 3)}, "ASPP channels"),
        ("fcn", {"decode_head.convs.99999.bn.weight": (6,)}, "convolutions of an FCN head: 100000"),
        ("fcn", {"decode_head.contrast_conv.2.weight": (2**50, 6, 1, 1)}, "projection_dim: 1125899906842624"),
        ("fcn", {"decode_head.conv_seg.weight": (0, 6, 1, 1)}, "num_classes: 0"),
    ],
)
def test_sizes_that_no_network_has(base, changes, message):
    model = MODELS.get(base, MODELS["basic"]) | HEADS.get(base, HEADS["fcn"])
    shapes = torch_shapes(model) | changes
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(Refused, match=message):
        networks.find(shapes, {})
    assert time.process_time() - start < 2 and tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
