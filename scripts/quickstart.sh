#!/usr/bin/env bash
# From nothing to a comparison, on demo scenes: makes the environment and the data, pretrains a small model with CP2,
# finetunes it and the same model from scratch on 40 labelled scenes, and prints both scores. Safe to run twice: what is
# finished is left alone, what was broken off goes on.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
runs=${1:-runs/demo}

echo "1/4 demo scenes"
"$python" scripts/prepare_data.py demo --output data/demo --size 48
echo "2/4 pretraining with CP2"
"$python" scripts/pretrain.py --config configs/pretrain.py:demo --workdir "$runs/pretrain"
echo "3/4 finetuning from it"
"$python" scripts/finetune.py --config configs/finetune_demo.py --workdir "$runs/finetune" \
  --config.init.checkpoint="$runs/pretrain"
echo "4/4 the same from scratch"
"$python" scripts/finetune.py --config configs/finetune_demo.py --workdir "$runs/scratch"
echo
"$python" scripts/compare.py "CP2=$runs/finetune" "scratch=$runs/scratch"
echo "pretraining's pictures and curves: $runs/pretrain/pictures"
