#!/usr/bin/env bash
# All that docs/performance.md says of one NVIDIA card, in order of importance, in at most nine minutes.
#
#     benchmarks/gpu.sh [OUT]              # OUT: a folder, default gpu_results
#     benchmarks/gpu.sh --rehearse [OUT]   # tiny models on the CPU: does every row run?
#
# A few rows at a time trace and compile on the host (PyTorch needs minutes for that); one of them, in turn, has the card,
# where JAX tries its kernels and all are timed. The number beside a row's name is how many seconds it may have the card; those
# of the first part add up to nine minutes, and what follows gets what is left of the time.
# What is in OUT already is not measured again: a second call goes on where the first one ended (on the same card).
# After each row OUT/gpu.json and OUT/table.txt are written anew, and copied to the folder KEEP if that is set, beside
# logs.tar.gz. Needs what pip install "cp2_jax[gpu]" installs; rows against PyTorch say that it is missing where it is.
# ROWS="step_r50 convs" measures these alone; TOTAL=300 is another limit in seconds; PYTHON another interpreter;
# WORKERS=1 runs one row after the other.
#
# On a lent machine that reaches no registry (docs/performance_details.md has the same with the preparation), the command is
#   python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl
#   PYTHONPATH=/tmp/site PYTHON=python3 KEEP=$OUT bash benchmarks/gpu.sh /tmp/gpu_results
set -uo pipefail
cd "$(dirname "$0")/.."
rehearse=""
[ "${1:-}" = "--rehearse" ] && { rehearse=1; shift; }
out=${1:-gpu_results}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
total=${TOTAL:-540}
workers=${WORKERS:-4}
begin=$SECONDS
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$out/compiled}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$out/inductor} TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$out/triton}
export TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-4}
export CARD_LOCK=$out/card.lock XLA_PYTHON_CLIENT_PREALLOCATE=false
if [ -n "$rehearse" ]; then
  export JAX_PLATFORMS=cpu
  # A rehearsal asks whether rows run, not how fast: compiled quickly, with time to do it.
  export JAX_DISABLE_MOST_OPTIMIZATIONS=1
  # XLA ends the process at a flag that it does not know, as that of jax 0.11 does here.
  "$python" -c "import jaxlib, sys; sys.exit(not jaxlib.__version__.startswith('0.10.'))" &&
    export XLA_FLAGS="--xla_cpu_use_fusion_emitters=false ${XLA_FLAGS:-}"
  size="--tiny --batch 8 --steps 2"; few="--tiny --batch 8"; small="--tiny --batch 4 --size 64 --steps 2"; device=cpu
  many="--tiny --batch 4 --seeds 2 --steps 1"; convs="--tiny --batch 4 --repeats 1"; total=${TOTAL:-7200}; workers=${WORKERS:-2}
else
  size="--batch 256 --steps 20"; few="--batch 256"; small="--batch 16 --size 512 --steps 20"; device=cuda
  convs="--batch 256 --repeats 3"; many="--steps 20"
fi
has_torch=""
"$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)" && has_torch=1

# row NAME SECONDS SCRIPT ARGUMENTS...: start a row when fewer than `workers` are at work.
row() {
  local name=$1
  [ -n "${ROWS:-}" ] && [[ " $ROWS " != *" $name "* ]] && return
  [ -s "$out/$name.json" ] && [ ! -s "$out/$name.status" ] && return
  if [[ " $* " == *" --peers "* ]] && [ -z "$has_torch" ]; then echo "PyTorch is not installed" > "$out/$name.status"; return; fi
  while [ "$(jobs -rp | wc -l)" -ge "$workers" ]; do wait -n; done
  measure "$@" 2> /dev/null & # without the shell's word on a program that its limit ended
  last=$!
}

# measure NAME SECONDS SCRIPT ARGUMENTS...: write OUT/NAME.json, or say in OUT/NAME.status why there is none, or not all.
measure() {
  local name=$1 limit=$2 script=$3 left=$((total - (SECONDS - begin))) start=$SECONDS status why=""
  shift 3
  if [ $left -lt 15 ]; then
    [ -s "$out/$name.json" ] || echo "no time left: call it again" > "$out/$name.status"
    return
  fi
  [ -n "$rehearse" ] && limit=${LIMIT:-1800}
  rm -f "$out/$name.part"
  (CARD_SECONDS=$limit exec timeout -k 5 "$left" "$python" "benchmarks/$script" "$@" --json "$out/$name.part") \
    > "$out/$name.log" 2>&1 < /dev/null # reading a terminal would stop a program in the background
  status=$?
  case $status in
    0) rm -f "$out/$name.status" ;;
    142) echo "cut short after $limit s on the card" > "$out/$name.status" ;;
    124) echo "cut short: the time was up after $left s" > "$out/$name.status" ;;
    137) [ $((SECONDS - start)) -ge "$left" ] && why="cut short: the time was up after $left s"
      echo "${why:-killed, as programs are that take more memory than there is}" > "$out/$name.status" ;;
    *) why=$(grep -E "^[A-Za-z_.]+: " "$out/$name.log" | tail -1)
      echo "failed: $(echo "${why:-exit status $status: $(tail -1 "$out/$name.log")}" | cut -c1-200)" > "$out/$name.status" ;;
  esac
  # What was written before the end counts: forms of convolutions are written one by one.
  [ -s "$out/$name.part" ] && mv "$out/$name.part" "$out/$name.json"
  printf '%-18s %4d s of %d  %s\n' "$name" $((SECONDS - start)) $((SECONDS - begin)) "$(cat "$out/$name.status" 2>/dev/null)"
  "$python" benchmarks/gpu_table.py "$out" ${KEEP:+--keep "$KEEP"} > /dev/null
}

bf16="--dtype bfloat16"
last=""
row step_r50 85 step.py --model r50_aspp $size $bf16 --device $device
row peer_r50 80 step.py --model r50_aspp $size $bf16 --device $device --peers best --peers_only
row peer_vit 50 step.py --model vit_aspp $size $bf16 --device $device --peers best --peers_only
row step_vit 50 step.py --model vit_aspp $size $bf16 --device $device
row whole 85 whole_step.py $size $bf16 --only whole
row convs 60 convs.py $convs $bf16 --only aspp_6,stem,pool,norm,aspp_12,rate_2,vit_aspp_12,vit_aspp_6 --rows
forms=$last
row peer_finetune 40 segmenting.py --job finetune $small --device $device --peers best --peers_only
row finetune 50 segmenting.py --job finetune $small
row augment 30 whole_step.py $size $bf16 --only augment
# If there is time left, and in a second call.
row memory 35 card_memory.py $few
row peer_evaluate 30 segmenting.py --job evaluate $small --device $device --peers best --peers_only
row evaluate 35 segmenting.py --job evaluate $small
[ -n "$forms" ] && wait "$forms" 2> /dev/null
[ -s "$out/convs.json" ] && row step_r50_forms 85 step.py --model r50_aspp $size $bf16 --device $device --forms "$out/convs.json"
row attention 40 attention.py $few
row peer_r50_original 60 step.py --model r50_aspp $size --device $device --peers original --peers_only
row finetune_vit 45 segmenting.py --job finetune --model vit_aspp $small
wait  # decoding wants the cores
row end_to_end 100 end_to_end.py $size --full --workers -1 --backgrounds in_batch
wait
row groups 130 whole_step.py $size $bf16 --only groups,strided
row step_vit_xla 45 step.py --model vit_aspp $size $bf16 --device $device --attention xla
row largest 200 card_memory.py $few --largest
row largest_remat 200 card_memory.py $few --largest --remat
row peer_r50_tuned 400 step.py --model r50_aspp $size $bf16 --device $device --peers autotuned --peers_only
row many_seeds 90 many_seeds.py $many
wait
"$python" benchmarks/gpu_table.py "$out" ${KEEP:+--keep "$KEEP"}
