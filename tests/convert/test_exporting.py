"""Export: import after export, and export after import, are the identity, bit for bit, in every layout and container."""

import zipfile

import numpy as np
import pytest
from helpers import checkpoints as make
from helpers.checkpoints import RESNET, TORCH, VIT
from helpers.paths import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from cp2_jax.convert import exporting, names, openmmlab
from cp2_jax.convert.containers import files
from cp2_jax.convert.importing import import_checkpoint
from cp2_jax.runs.checkpoints import CheckpointError, write_variables


def arrays_in(path):
    tree, _ = files.read(path)
    return {name: files.to_numpy(tensor) for name, tensor in tree.items()}


def identical(found, expected):
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())[:5]
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


MMSEG = {n: a for n, a in TORCH["mmseg"][1]["state_dict"].items() if "auxiliary" not in n}
CP2 = {n: a for n, a in TORCH["cp2_plain"][1].items() if "conv_seg" not in n}
MERGED = {n: a for n, a in TORCH["merged"][1].items()}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("layout", "state"),
    [("torchvision", RESNET), ("timm", VIT), ("mmseg", MMSEG), ("mmseg", CP2), ("merged", MERGED)],
    ids=["torchvision", "timm", "mmseg", "cp2", "merged"],
)
def test_import_then_export_is_the_identity(tmp_path, layout, state, ending):
    make.save_torch(tmp_path / "in.pth", state)
    imported = import_checkpoint(tmp_path / "in.pth")
    exporting.write(tmp_path / f"out{ending}", exporting.state_dict(imported.variables, imported.meta, layout))
    identical(arrays_in(tmp_path / f"out{ending}"), state)
    # And the reverse: what was exported imports to the same variables, again bit for bit.
    again = import_checkpoint(tmp_path / f"out{ending}", heads=imported.meta["model"].get("vit", {}).get("heads"))
    identical(names.torch_from_variables(again.variables), names.torch_from_variables(imported.variables))
    assert again.meta["model"] == imported.meta["model"]
    assert again.meta["num_batches_tracked"] == imported.meta["num_batches_tracked"]


def test_a_model_trained_here_counts_zero_batches_and_may_leave_its_projection(tmp_path):
    variables = names.variables_from_torch(CP2)
    state = exporting.state_dict(variables, {"kind": "pretrain"}, "mmseg")
    assert state["backbone.bn1.num_batches_tracked"] == 0 and state["backbone.bn1.num_batches_tracked"].dtype == np.int64
    assert state.keys() == CP2.keys()
    without = exporting.state_dict(variables, {}, "mmseg", projection=False)
    assert state.keys() - without.keys() == {n for n in CP2 if "contrast_conv" in n}


def test_the_backbone_alone_leaves_the_head(tmp_path):
    variables = names.variables_from_torch(CP2)
    assert exporting.state_dict(variables, {}, "torchvision").keys() == RESNET.keys()


def test_errors_name_the_way_out(tmp_path):
    variables = names.variables_from_torch({f"backbone.{n}": a for n, a in RESNET.items()})
    with pytest.raises(CheckpointError, match="use --layout torchvision"):
        exporting.state_dict(variables, {}, "timm")
    with pytest.raises(CheckpointError, match="there are mmseg"):
        exporting.state_dict(variables, {}, "keras")
    with pytest.raises(CheckpointError, match="somewhere/new"):
        exporting.state_dict({"params": {"somewhere": {"new": np.zeros(1)}}}, {}, "mmseg")
    with pytest.raises(CheckpointError, match="end the output's name in .pth or .safetensors"):
        exporting.write(tmp_path / "x.bin", {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/x.pth cannot be written"):
        exporting.write(tmp_path / "file" / "x.pth", {})
    with pytest.raises(CheckpointError, match="file/new cannot be written"):
        write_variables(tmp_path / "file" / "new", variables, {})


shapes = st.lists(st.integers(0, 4), max_size=4)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=12), st.tuples(shapes, st.sampled_from(["f4", "i8"])), max_size=5))
def test_any_arrays_survive_the_pytorch_container(tmp_path_factory, described):
    path = tmp_path_factory.mktemp("pth") / "x.pth"
    wrote = {
        name: np.arange(np.prod(shape, dtype=int)).astype(kind).reshape(shape) for name, (shape, kind) in described.items()
    }
    exporting.write_pth(path, wrote)
    found = arrays_in(path)
    assert list(found) == list(wrote)
    identical(found, wrote)


def test_tensors_lie_where_pytorch_can_map_them(tmp_path):
    exporting.write_pth(tmp_path / "x.pth", {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float32)})
    data = (tmp_path / "x.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            name, extra = (
                int.from_bytes(data[entry.header_offset + i : entry.header_offset + i + 2], "little") for i in (26, 28)
            )
            assert (entry.header_offset + 30 + name + extra) % 64 == 0


def test_a_config_of_mmsegmentation_goes_with_the_export(tmp_path):
    """What the export says is read back as the same network; files of MMSegmentation itself are a fixed point."""
    for name in ("deeplab_r18_d8", "fcn_d6_r18_d16_bgr"):
        imported = import_checkpoint(DATA / f"checkpoints/mmsegmentation_{name}.pth")
        stated = openmmlab.read({"meta": {"config": exporting.mmsegmentation(imported.meta)}})
        model = imported.meta["model"]
        assert stated.backbone.items() <= model["resnet"].items() and stated.head.items() <= model[model["head"]].items()
        assert not stated.bgr and stated.input == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert max(map(len, exporting.mmsegmentation(imported.meta).splitlines())) <= 80
    assert exporting.mmsegmentation({}) == ""


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"depth": 18, "output_stride": 8}, "basic_dilation=both: it dilates the first 3x3"),
        ({"depth": 50, "padding": "same"}, "padding=same"),
        ({"depth": 50, "stage_sizes": [1, 1, 1, 1]}, "stage_sizes"),
    ],
)
def test_what_mmsegmentation_cannot_compute_is_refused(section, message):
    """Not the weights alone: the backbone by itself may go to torchvision's names."""
    variables = names.variables_from_torch(CP2)
    model = {"backbone": "resnet", "resnet": section, "head": "aspp"}
    meta = {
        "kind": "converted",
        "file": "cp2.pth",
        "format": "mmseg",
        "model": model,
        "input": {"mean": [0, 0, 0], "std": [1, 1, 1]},
    }
    for layout in ("mmseg", "merged"):
        with pytest.raises(CheckpointError, match=message):
            exporting.state_dict(variables, meta, layout)
    assert exporting.state_dict(variables, meta, "torchvision")
    for fine in ({"depth": 18, "output_stride": 8, "basic_dilation": "first"}, {"depth": 18, "output_stride": 32}):
        model["resnet"] = fine
        assert exporting.state_dict(variables, meta, "mmseg")
