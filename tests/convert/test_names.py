"""Names and layouts between PyTorch's state_dict and our variables."""

import json

import numpy as np
import pytest
from helpers.paths import DATA

from cp2_jax.convert import names

FULL_SIZE = json.loads((DATA / "C_fullsize.json").read_text())


@pytest.mark.parametrize(
    "theirs,collection,ours",
    [
        ("backbone.conv1.weight", "params", "backbone/conv1/kernel"),
        ("backbone.bn1.weight", "params", "backbone/bn1/scale"),
        ("backbone.bn1.running_var", "batch_stats", "backbone/bn1/var"),
        ("backbone.layer3.12.conv2.weight", "params", "backbone/layer3_12/conv2/kernel"),
        ("backbone.layer1.0.downsample.0.weight", "params", "backbone/layer1_0/downsample_conv/kernel"),
        ("backbone.layer1.0.downsample.1.running_mean", "batch_stats", "backbone/layer1_0/downsample_bn/mean"),
        ("backbone.cls_token", "params", "backbone/cls_token"),
        ("backbone.patch_embed.proj.bias", "params", "backbone/patch_embed/bias"),
        ("backbone.blocks.10.norm2.bias", "params", "backbone/blocks_10/norm2/bias"),
        ("backbone.blocks.0.attn.qkv.weight", "params", "backbone/blocks_0/attn/qkv/kernel"),
        ("backbone.blocks.0.mlp.fc2.weight", "params", "backbone/blocks_0/mlp/fc2/kernel"),
        ("backbone.norm.weight", "params", "backbone/norm/scale"),
        ("decode_head.image_pool.1.bn.weight", "params", "head/image_pool/bn/scale"),
        ("decode_head.aspp_modules.3.conv.weight", "params", "head/aspp_3/conv/kernel"),
        ("decode_head.convs.1.bn.running_mean", "batch_stats", "head/convs_1/bn/mean"),
        ("decode_head.conv_cat.conv.weight", "params", "head/conv_cat/conv/kernel"),
        ("decode_head.contrast_conv.2.bias", "params", "projection/conv2/bias"),
        ("decode_head.conv_seg.weight", "params", "classifier/conv_seg/kernel"),
    ],
)
def test_each_kind_of_name_both_ways(theirs, collection, ours):
    assert names.our_name(theirs) == (collection, ours)
    assert names.torch_name(collection, ours) == theirs


@pytest.mark.parametrize("model", FULL_SIZE)
def test_every_full_size_parameter_has_one_name_of_its_own(model):
    theirs = list(FULL_SIZE[model]["params_shapes"])
    ours = [names.our_name(name) for name in theirs]
    assert len(set(ours)) == len(theirs)
    assert [names.torch_name(*name) for name in ours] == theirs


@pytest.mark.parametrize("run", ["A_resnet_aspp", "A_resnet_fcn", "A_vit_aspp"])
def test_arrays_come_back_unchanged(reference, run):
    recorded = reference(run)
    state = {k[6:]: recorded[k] for k in recorded if k.startswith("state/")}
    back = names.torch_from_variables(names.variables_from_torch(state))
    assert back.keys() == {k for k in state if not k.endswith("num_batches_tracked")}
    for name, value in back.items():
        assert value.dtype == state[name].dtype
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_convolutions_become_hwio_and_linear_layers_inputs_by_outputs():
    state = {
        "backbone.conv1.weight": np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7),
        "backbone.blocks.0.mlp.fc1.weight": np.arange(6).reshape(3, 2),
        "backbone.bn1.weight": np.arange(4),
    }
    backbone = names.variables_from_torch(state)["params"]["backbone"]
    assert backbone["conv1"]["kernel"][4, 6, 2, 1] == state["backbone.conv1.weight"][1, 2, 4, 6]
    assert backbone["blocks_0"]["mlp"]["fc1"]["kernel"][1, 2] == state["backbone.blocks.0.mlp.fc1.weight"][2, 1]
    np.testing.assert_array_equal(backbone["bn1"]["scale"], np.arange(4))


@pytest.mark.parametrize(
    "stranger",
    ["neck.weight", "backbone.layer1.0.conv1.gamma", "module.backbone.conv1.weight", "auxiliary_head.conv_seg.bias"],
)
def test_names_of_other_models_are_refused(stranger):
    with pytest.raises(KeyError, match=f"{stranger}: no such variable in a CP2 model"):
        names.variables_from_torch({stranger: np.zeros(3)})


def test_variables_of_other_models_are_refused():
    with pytest.raises(KeyError, match="params/neck/kernel: no counterpart in PyTorch's names"):
        names.torch_from_variables({"params": {"neck": {"kernel": np.zeros((1, 2))}}})
    with pytest.raises(KeyError, match="params/backbone/conv1/gamma"):
        names.torch_from_variables({"params": {"backbone": {"conv1": {"gamma": np.zeros(2)}}}})
