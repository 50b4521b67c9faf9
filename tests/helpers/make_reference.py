"""Cut the recorded reference arrays down to what the parity tests read.

    PYTHONPATH=tests python -m helpers.make_reference REFERENCE_DIR

REFERENCE_DIR holds the full recording from the original PyTorch code; the results lie in tests/data and are committed.
"""

import json
import pathlib
import re
import sys

import numpy as np

from helpers.parity import sample
from helpers.paths import DATA

OUT = DATA
LOSSES = r"(loss_\w+|logits_moco|logits_dense|idx_shuffle)"
# Of what is recorded after every step, the last step holds all the earlier ones' effect.
KEEP = {
    "A_resnet_aspp": [r""],
    "A_resnet_fcn": [r""],
    "A_vit_aspp": [r""],
    "B_inputs": [r"step\d/(image_[qk]|mask_[qk])$"],
    "B_resnet_aspp_sgd": [r"init/", rf"step0/{LOSSES}"],
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
        r"step2/queue_after",
    ],
    "B_vit_aspp_adamw": [r"init/", rf"step0/{LOSSES}"],
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
    "B_vit_aspp_sgd_ws2": [
        rf"f64/step\d/rank\d/{LOSSES}",
        r"step\d/idx_shuffle",
        r"step\d/rank\d/bn_",
        r"step\d/grad/(backbone.blocks.0.norm1|decode_head)",
        r"step2/queue_after",
    ],
}
# Too large to keep whole: evenly spread values of the backbone's stages, and of each array of the final state.
SAMPLED = r"backbone_(train|eval)/\d"
STATES = r"final/encoder_[qk]\."
SHAPES = [
    "params_shapes",
    "params_total",
    "params_backbone",
    "params_total_without_conv_seg",
    "bn_running_stat_elements",
    "backbone_out_shapes",
    "out_shape",
    "finetune_whole_logits_shape_224",
    "finetune_params_total",
]


def main(reference: pathlib.Path):
    for name, patterns in KEEP.items():
        full = np.load(reference / f"{name}.npz")
        kept = {k: full[k] for k in full if any(re.match(p, k) for p in patterns) or k == "grad_norm_names"}
        kept = {k: sample(v, 512) if re.match(SAMPLED, k) else v for k, v in kept.items()}
        final = [k for k in full if re.match(STATES, k) and not k.endswith("num_batches_tracked")]
        if final and "_ws2" not in name and "_f64" not in name:
            kept |= {"final_names": np.array(final), "final_samples": np.stack([sample(full[k]) for k in final])}
        np.savez_compressed(OUT / f"{name}.npz", **kept)
        print(name, len(kept), "arrays", (OUT / f"{name}.npz").stat().st_size // 1000, "kB")
    sizes = json.loads((reference / "C_fullsize.json").read_text())
    for name, full in sizes.items():
        spread = {parameter: statistics["std"] for parameter, statistics in full["official_init_stats"].items()}
        sizes[name] = {key: full[key] for key in SHAPES} | {"init": spread}
    (OUT / "C_fullsize.json").write_text(json.dumps(sizes, separators=(",", ":")))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
