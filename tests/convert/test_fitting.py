"""A converted checkpoint meets a run's config: what would silently compute nonsense is an error that names the setting."""

import jax
import numpy as np
import pytest
from helpers import checkpoints as make

from configs import pretrain_r50_aspp
from cp2_jax.convert.fitting import fit
from cp2_jax.convert.importing import import_checkpoint
from cp2_jax.models import segmenter
from cp2_jax.runs.checkpoints import CheckpointError


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    make.save_torch(folder / "timm.pth", make.vit(norm=True))
    make.save_torch(folder / "moco.pth", make.TORCH["moco_v2"][1])
    make.save_byol(folder / "byol.pkl")
    make.save_torch(folder / "simclr.pth", {"resnet": make.separius(make.RESNET), "head": {}})
    return {path.stem: import_checkpoint(path) for path in folder.iterdir()}


def model_config(**changes):
    model = pretrain_r50_aspp.get_config().model
    model.resnet.update(width=2, stem_width=2)
    model.vit.update(patch=4, width=64, depth=2, heads=1)
    model.aspp.channels = 4
    model.dtype = "float32"
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            model[section].update({key: value})
        else:
            model[section] = value
    return model


def test_what_fits_passes_unchanged(imported):
    moco = imported["moco"]
    variables, changes = fit(moco.variables, moco.meta, model_config(), image_size=64)
    assert changes == [] and variables["params"] is moco.variables["params"]
    # The names are those of the model's own variables.
    model = segmenter.build(model_config(), top="projection", image_size=64)
    initial = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 64, 64, 3)), train=False))
    assert jax.tree.map(np.shape, variables["params"]["backbone"]) == jax.tree.map(
        lambda x: x.shape, initial["params"]["backbone"]
    )
    ours, changes = fit({"params": 1}, {"kind": "pretrain"}, model_config(backbone="vit"), image_size=64)
    assert ours == {"params": 1} and changes == []


def test_vits_lose_the_final_norm_and_their_table_is_resized(imported):
    timm = imported["timm"]
    model = model_config(backbone="vit")
    variables, changes = fit(timm.variables, timm.meta, model, image_size=12)
    assert "norm" not in variables["params"]["backbone"] and len(changes) == 1 and "final_norm" in changes[0]
    assert "norm" in timm.variables["params"]["backbone"]  # the original is left alone
    model = model_config(backbone="vit", vit__final_norm=True)
    variables, changes = fit(timm.variables, timm.meta, model, image_size=24)
    table = variables["params"]["backbone"]["pos_embed"]
    assert table.shape == (1, 37, 64) and "3 x 3 to 6 x 6" in changes[0] and "norm" in variables["params"]["backbone"]
    np.testing.assert_array_equal(table[:, 0], timm.variables["params"]["backbone"]["pos_embed"][:, 0])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("timm", {"backbone": "vit", "vit__heads": 2}, "config.model.vit.heads=1 (is 2)"),
        ("timm", {}, "set config.model.backbone=vit"),
        ("moco", {"resnet__depth": 101}, "config.model.resnet.depth=50 (is 101)"),
        ("moco", {"resnet__width": 64, "resnet__stem_width": 64}, "config.model.resnet.width=2 (is 64)"),
        ("byol", {}, "config.model.resnet.padding='same' (is 'torch')"),
        ("simclr", {}, "config.model.mean=(0.0, 0.0, 0.0)"),
    ],
)
def test_settings_that_would_compute_nonsense_are_errors(imported, name, changes, message):
    with pytest.raises(CheckpointError) as caught:
        fit(imported[name].variables, imported[name].meta, model_config(**changes), image_size=12)
    assert message in str(caught.value)


def test_a_final_norm_that_is_not_there_cannot_be_had(tmp_path):
    make.save_torch(tmp_path / "x.pth", make.vit(norm=False))
    bare = import_checkpoint(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no final norm"):
        fit(bare.variables, bare.meta, model_config(backbone="vit", vit__final_norm=True), image_size=12)
