"""Cut the recorded reference arrays down to what the parity tests read.

    python tests/make_reference.py REFERENCE_DIR

REFERENCE_DIR holds the full recording from the original PyTorch code; the results lie in tests/data and are committed.
"""

import pathlib
import re
import sys

import numpy as np

OUT = pathlib.Path(__file__).parent / "data"
LOSSES = r"(loss_\w+|logits_moco|logits_dense|idx_shuffle)"
# Of what is recorded after every step, the last step holds all the earlier ones' effect.
KEEP = {
    "A_resnet_aspp": [r"(?!backbone_eval)"],
    "A_resnet_fcn": [r"(?!backbone_)"],
    "A_vit_aspp": [r""],
    "B_inputs": [r"step\d/(image_[qk]|mask_[qk])$"],
    "B_resnet_aspp_sgd": [r"init/", rf"step0/{LOSSES}", r"final/encoder_[qk]\.decode_head\.(bottleneck|contrast_conv)"],
    "B_resnet_aspp_sgd_f64": [
        rf"f64/step\d/{LOSSES}",
        r"f64/step\d/grad_norms",
        r"f64/step0/grad(_eq2)?/",
        r"f64/step3/grad/(backbone.layer3.0.bn3|decode_head)",
        r"f64/step[03]/param_[qk]_after/(?!backbone.patch_embed)",
        r"f64/step3/queue_after",
    ],
    "B_resnet_aspp_sgd_ws2": [
        rf"f64/step\d/rank\d/{LOSSES}",
        r"step\d/idx_shuffle",
        r"step\d/rank\d/bn_",
        r"f64/step\d/grad/(backbone.layer3.0.bn3|decode_head)",
    ],
    "B_vit_aspp_adamw": [r"init/", rf"step0/{LOSSES}", r"final/encoder_[qk]\.decode_head\.(bottleneck|contrast_conv)"],
    "B_vit_aspp_adamw_f64": [
        rf"f64/step\d/{LOSSES}",
        r"f64/step0/grad/",
        r"f64/step0/grad_eq2/(?!backbone.patch_embed)",
        r"f64/step\d/grad_norms",
        r"f64/step[03]/param_[qk]_after/(?!backbone.patch_embed)",
        r"f64/step3/queue_after",
    ],
    "B_vit_aspp_sgd": [rf"step0/{LOSSES}"],  # starts from the same weights as B_vit_aspp_adamw
    "B_vit_aspp_sgd_f64": [
        rf"f64/step\d/{LOSSES}",
        r"f64/step\d/grad_norms",
        r"f64/step[03]/param_[qk]_after/(?!backbone.patch_embed)",
        r"f64/step3/queue_after",
    ],
    "B_vit_aspp_sgd_ws2": [rf"f64/step\d/rank\d/{LOSSES}", r"step\d/idx_shuffle", r"step\d/rank\d/bn_"],
}


def main(reference: pathlib.Path):
    for name, patterns in KEEP.items():
        full = np.load(reference / f"{name}.npz")
        kept = {k: full[k] for k in full if any(re.match(p, k) for p in patterns) or k == "grad_norm_names"}
        np.savez_compressed(OUT / f"{name}.npz", **kept)
        print(name, len(kept), "arrays", (OUT / f"{name}.npz").stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
