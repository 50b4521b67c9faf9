#!/usr/bin/env bash
# From nothing to a comparison, on demo scenes: makes the environment and the data, pretrains a small model with CP2,
# finetunes it and the same model from scratch on 40 labelled scenes, and prints both scores. Safe to run twice: what is
# finished is left alone, what was broken off goes on. Pretraining takes half the steps of the demo's config, to end within
# minutes; docs/results.md has five seeds of both lengths.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
runs=${1:-runs/demo}

echo "1/4 demo scenes"
"$python" scripts/prepare_data.py demo --output data/demo --size 48
echo "2/4 pretraining with CP2; at the same time 4/4, the same model from scratch"
# While pretraining starts and compiles, a core is free; and what this run compiles, 3/4 need not compile again.
mkdir -p "$runs"
"$python" scripts/finetune.py --config configs/finetune_demo.py --workdir "$runs/scratch" >"$runs/scratch.log" 2>&1 &
scratch=$!
trap 'kill -TERM $scratch 2>/dev/null || true' EXIT  # stopped, it saves its state, and goes on from there next time
"$python" scripts/pretrain.py --config configs/pretrain.py:demo --workdir "$runs/pretrain" \
  --config.steps=2000 --config.picture_every=1000
echo "3/4 finetuning from it"
"$python" scripts/finetune.py --config configs/finetune_demo.py --workdir "$runs/finetune" \
  --config.init.checkpoint="$runs/pretrain"
wait $scratch || { status=$?; tail -n 5 "$runs/scratch.log" >&2; exit $status; }
trap - EXIT
tail -n 2 "$runs/scratch.log"
echo
"$python" scripts/compare.py "CP2=$runs/finetune" "scratch=$runs/scratch"
echo "pretraining's pictures and curves: $runs/pretrain/pictures"
echo "next, with images of your own: .venv/bin/cp2 pretrain photos runs/photos"
