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
echo "3/4 finetuning from it; at the same time 4/4, the same from scratch"
# A small network keeps one core busy: two runs take little longer than one.
mkdir -p "$runs"
"$python" scripts/finetune.py --config configs/finetune_demo.py --workdir "$runs/scratch" >"$runs/scratch.log" 2>&1 &
scratch=$!
trap 'kill -TERM $scratch 2>/dev/null || true' EXIT  # stopped, it saves its state, and goes on from there next time
"$python" scripts/finetune.py --config configs/finetune_demo.py --workdir "$runs/finetune" \
  --config.init.checkpoint="$runs/pretrain"
wait $scratch || { status=$?; tail -n 5 "$runs/scratch.log" >&2; exit $status; }
trap - EXIT
tail -n 2 "$runs/scratch.log"
echo
"$python" scripts/compare.py "CP2=$runs/finetune" "scratch=$runs/scratch"
echo "pretraining's pictures and curves: $runs/pretrain/pictures"
