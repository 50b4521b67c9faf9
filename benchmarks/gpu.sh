#!/usr/bin/env bash
# All that docs/performance.md says of one NVIDIA card, in order of importance, in at most nine minutes.
#
#     benchmarks/gpu.sh [OUT]              # OUT: a folder, default gpu_results
#     benchmarks/gpu.sh --rehearse [OUT]   # tiny models on the CPU: does every row run?
#
# Each row has its own time limit. What is in OUT already is not measured again: a second call goes on where the first one's
# nine minutes ended (same card, and the compilations are kept). Prints one table, writes OUT/gpu.json. Needs what
# pip install "cp2_jax[gpu]" installs; rows against PyTorch say that it is missing where it is.
# ROWS="step_r50 convs" measures these alone; TOTAL=300 is another limit in seconds; PYTHON another interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
rehearse=""
[ "${1:-}" = "--rehearse" ] && { rehearse=1; shift; }
out=${1:-gpu_results}
mkdir -p "$out"
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
total=${TOTAL:-540}
begin=$SECONDS
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/$out/compiled}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/cp2_inductor}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
case $out in /*) export JAX_COMPILATION_CACHE_DIR=$out/compiled ;; esac
if [ -n "$rehearse" ]; then
  export JAX_PLATFORMS=cpu
  # A rehearsal asks whether rows run, not how fast: compiled quickly, with time to do it.
  export XLA_FLAGS="--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 ${XLA_FLAGS:-}"
  size="--tiny --batch 8 --steps 2"; few="--tiny --batch 8"; small="--tiny --batch 4 --size 64 --steps 2"; device=cpu
  convs="--tiny --batch 4 --repeats 1"
else
  size="--batch 256 --steps 20"; few="--batch 256"; small="--batch 16 --size 512 --steps 20"; device=cuda
  convs="--batch 256 --repeats 3"
fi
has_torch=""
"$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)" && has_torch=1

# row NAME SECONDS SCRIPT ARGUMENTS...: measure one row into OUT/NAME.json, or say in OUT/NAME.status why not.
row() {
  local name=$1 limit=$2 script=$3 left
  shift 3
  [ -n "${ROWS:-}" ] && [[ " $ROWS " != *" $name "* ]] && return
  [ -s "$out/$name.json" ] && return
  if [[ " $* " == *" --peers "* ]] && [ -z "$has_torch" ]; then echo "PyTorch is not installed" > "$out/$name.status"; return; fi
  [ -n "$rehearse" ] && limit=900
  left=$((total - (SECONDS - begin)))
  if [ $left -lt 15 ]; then echo "no time left: call it again" > "$out/$name.status"; return; fi
  [ $left -lt "$limit" ] && limit=$left
  local start=$SECONDS
  printf '%-18s' "$name"
  timeout -k 5 "$limit" "$python" "benchmarks/$script" "$@" --json "$out/$name.part" > "$out/$name.log" 2>&1
  local status=$?
  # What was written before the time ran out counts: forms of convolutions are written one by one.
  if [ $status -eq 0 ] || { [ $status -eq 124 ] && [ -s "$out/$name.part" ]; }; then mv "$out/$name.part" "$out/$name.json"; fi
  case $status in
    0) rm -f "$out/$name.status" ;;
    124|137) echo "cut short after $limit s" > "$out/$name.status" ;;
    *) echo "failed: $(grep -E "^[A-Za-z_.]+: " "$out/$name.log" | tail -1 | cut -c1-200)" > "$out/$name.status" ;;
  esac
  echo " $((SECONDS - start)) s $(cat "$out/$name.status" 2>/dev/null)"
}

bf16="--dtype bfloat16"
row step_r50 100 step.py --model r50_aspp $size $bf16 --device $device
row step_vit 80 step.py --model vit_aspp $size $bf16 --device $device
row whole 130 whole_step.py $size $bf16 --only whole,augment
row convs 100 convs.py $convs $bf16 --only aspp_12,rate_2,aspp_6,stem,pool,norm,aspp_18,vit_aspp_12,vit_aspp_6 --rows
row peer_r50 220 step.py --model r50_aspp $size $bf16 --device $device --peers best --peers_only
[ -s "$out/convs.json" ] && row step_r50_forms 100 step.py --model r50_aspp $size $bf16 --device $device --forms "$out/convs.json"
row peer_vit 160 step.py --model vit_aspp $size $bf16 --device $device --peers best --peers_only
row attention 50 attention.py $few
row memory 90 card_memory.py $few
row finetune 90 segmenting.py --job finetune $small
row peer_finetune 160 segmenting.py --job finetune $small --device $device --peers best --peers_only
row evaluate 70 segmenting.py --job evaluate $small
row peer_evaluate 90 segmenting.py --job evaluate $small --device $device --peers best --peers_only
row finetune_vit 80 segmenting.py --job finetune --model vit_aspp $small
row groups 120 whole_step.py $size $bf16 --only plain,groups,strided
row end_to_end 120 end_to_end.py $size --full --workers -1 --backgrounds in_batch
row step_vit_xla 80 step.py --model vit_aspp $size $bf16 --device $device --attention xla
row largest 200 card_memory.py $few --largest
row largest_remat 200 card_memory.py $few --largest --remat
row peer_r50_original 80 step.py --model r50_aspp $size --device $device --peers original --peers_only
row peer_r50_tuned 400 step.py --model r50_aspp $size $bf16 --device $device --peers autotuned --peers_only
[ -f benchmarks/many_seeds.py ] && row many_seeds 120 many_seeds.py $few
"$python" benchmarks/gpu_table.py "$out"
