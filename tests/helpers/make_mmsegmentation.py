"""Make tests/data/checkpoints/mmsegmentation_*.pth: what MMEngine's Runner writes of MMSegmentation 1.x models, and what
these models compute. Not run by the tests; needs an environment of its own:

    pip install torch==2.13.0 mmengine==0.10.7 mmsegmentation==1.2.2 mmcv-lite==2.1.0 ftfy regex prettytable scipy
    python tests/helpers/make_mmsegmentation.py tests/data/checkpoints

Each model starts from MMSegmentation's own config file; widths are made small, weights and statistics random.
"""

import pathlib
import sys
import tempfile
import types

import numpy as np
import torch


class Operators(types.ModuleType):
    """Stands for mmcv's compiled operators, which none of these models uses and mmcv-lite lacks."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: None


sys.modules["mmcv._ext"] = Operators("mmcv._ext")

import mmengine.model.utils  # noqa: E402
import mmseg  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402

mmengine.model.utils.mmcv_full_available = bool  # no: there are none of its operators
CONFIGS = pathlib.Path(mmseg.__file__).parent / ".mim/configs"
# Small ResNets; `type` because MMSegmentation's configs take ResNetV1c, with another stem.
RESNET = {"type": "ResNet", "base_channels": 2, "stem_channels": 2, "norm_cfg": {"type": "BN"}}
BGR = {"bgr_to_rgb": False, "mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395]}


def aspp(inputs, **more):
    return {"channels": 4, "in_channels": inputs, "num_classes": 3, "norm_cfg": {"type": "BN"}} | more


VIT = {
    "img_size": (32, 32),
    "patch_size": 8,
    "embed_dims": 12,
    "num_layers": 2,
    "num_heads": 3,
    "mlp_ratio": 2,
    "out_indices": (1,),
    "drop_path_rate": 0.0,
}
FCN_OF_VIT = {
    "type": "FCNHead",
    "in_channels": 12,
    "in_index": 0,
    "channels": 4,
    "num_classes": 3,
    "norm_cfg": {"type": "BN"},
}
BASIC = RESNET | {"depth": 18, "multi_grid": None}
MODELS = {
    "deeplab_r50_d8": ("deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512.py", RESNET, aspp(64)),
    "deeplab_r18_d8": ("deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py", RESNET, aspp(16)),
    "deeplab_r18_d16": ("deeplabv3/deeplabv3_r101-d16-mg124_4xb2-40k_cityscapes-512x1024.py", BASIC, aspp(16)),
    "fcn_r18_d8": ("fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py", RESNET, aspp(16)),
    "fcn_d6_r18_d16_bgr": ("fcn/fcn-d6_r50-d16_4xb2-40k_cityscapes-512x1024.py", BASIC, aspp(16)),
    "vit_fcn": ("vit/vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py", VIT, FCN_OF_VIT),
    "vit_fcn_bgr": ("vit/vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py", VIT, FCN_OF_VIT),
}


class Images(torch.utils.data.Dataset):
    """A data set whose classes the checkpoint keeps."""

    metainfo = {"classes": ("one", "two", "three")}

    def __len__(self):
        return 1


def configured(file, backbone, head, name):
    config = Config.fromfile(CONFIGS / file)
    normalization = BGR if name.endswith("bgr") else {}
    head_changes = {} if backbone is VIT else head
    model = {"backbone": backbone, "decode_head": head_changes, "data_preprocessor": normalization, "pretrained": None}
    config.merge_from_dict({"model": model, "data_preprocessor": normalization})
    config.model.auxiliary_head = None
    if backbone is VIT:
        config.model.neck, config.model.decode_head = None, head
    return config


def main():
    folder, recorded = pathlib.Path(sys.argv[1]), {}
    register_all_modules(init_default_scope=True)
    for name, (file, backbone, head) in MODELS.items():
        torch.manual_seed(0)
        config = configured(file, backbone, head, name)
        with tempfile.TemporaryDirectory() as workdir:
            runner = Runner(
                config.model,
                workdir,
                torch.utils.data.DataLoader(Images()),
                cfg=config,
                default_scope="mmseg",
                train_cfg={"by_epoch": False, "max_iters": 1},
                optim_wrapper=config.optim_wrapper,
                experiment_name=name,
            )
            model = runner.model.eval()
            with torch.no_grad():
                for key, value in model.state_dict().items():
                    if value.ndim in (2, 4):
                        value.normal_(0, (2 / value[0].numel()) ** 0.5)
                    elif value.dtype == torch.float32:
                        low, high = (0.7, 1.3) if key.endswith(("weight", "running_var")) else (-0.2, 0.2)
                        value.uniform_(low, high)
            runner.save_checkpoint(folder, f"mmsegmentation_{name}.pth", save_optimizer=False)
        image = np.random.default_rng(1).integers(0, 256, (45, 70, 3), dtype=np.uint8)  # RGB
        inputs = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))  # as MMSegmentation loads it
        with torch.no_grad():
            preprocessor = model.data_preprocessor
            preprocessor.test_cfg = None
            batch = preprocessor({"inputs": [inputs]}, training=False)["inputs"]
            features = model.extract_feat(batch)
            logits = model.decode_head.forward(features)
            whole = model.encode_decode(batch, [{"img_shape": image.shape[:2]}])
        recorded |= {"image": image, f"{name}/logits": logits.numpy(), f"{name}/whole": whole.numpy()}
    np.savez_compressed(folder / "mmsegmentation_expected.npz", **recorded)


if __name__ == "__main__":
    main()
