#!/usr/bin/env bash
# A run on a Cloud TPU VM slice: create it, copy this checkout, run on all its workers, fetch logs, go on after preemption.
#
#     scripts/launch/cloud_tpu.sh create                            # the slice, and the environment on each worker
#     scripts/launch/cloud_tpu.sh run scripts/pretrain.py --config … --workdir …
#     scripts/launch/cloud_tpu.sh logs | status | stop | delete
#     scripts/launch/cloud_tpu.sh keep scripts/pretrain.py …        # create, run, and again after preemptions, to the end
#
# Settings by environment: TPU_NAME, TPU_TYPE (v4-32), ZONE, PROJECT, RUNTIME (tpu-ubuntu2204-base), SPOT=1,
# MAX_RESTARTS (20). DRY_RUN=1 prints the gcloud commands instead. --workdir must outlive the slice: gs://BUCKET/…, or a file
# system that all workers share. See docs/launch_cloud_tpu.md.
set -euo pipefail

name=${TPU_NAME:-cp2-jax} type=${TPU_TYPE:-v4-32} zone=${ZONE:-us-central2-b} runtime=${RUNTIME:-tpu-ubuntu2204-base}
where=(--zone="$zone" ${PROJECT:+--project="$PROJECT"})
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
poll=${POLL_SECONDS:-30}

gcloud() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf 'gcloud'
    printf ' %q' "$@"
    printf '\n'
  else command gcloud "$@"; fi
}

on_all() { gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

create() {
  gcloud compute tpus tpu-vm create "$name" "${where[@]}" --accelerator-type="$type" --version="$runtime" ${SPOT:+--spot}
  copy
  # jax[tpu] brings libtpu; the rest is what the tests run with.
  on_all "cd cp2_jax && python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt 'jax[tpu]==$(jax_version)' && .venv/bin/pip install -q --no-deps --no-build-isolation -e ."
}

jax_version() { sed -n 's/^jax==//p' "$root/requirements.txt"; }

copy() {
  local archive
  archive=$(mktemp -d)/cp2_jax.tar.gz
  # What is committed and what is changed, without runs and data.
  (cd "$root" && git ls-files -z --cached --others --exclude-standard | tar --null -czf "$archive" -T -)
  gcloud compute tpus tpu-vm scp "$archive" "$name": "${where[@]}" --worker=all
  on_all "mkdir -p cp2_jax && tar -xzf cp2_jax.tar.gz -C cp2_jax"
}

# The run outlives the connection; its status is left in a file.
start() {
  local command
  command=$(printf ' %q' "$@")
  on_all "cd cp2_jax && rm -f run.status && nohup sh -c '.venv/bin/python$command; echo \$? > run.status' > run.log 2>&1 < /dev/null & echo started"
}

# Prints the workers' statuses, one a line: a number, or "running".
statuses() { on_all "cat cp2_jax/run.status 2>/dev/null || echo running"; }

logs() { gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="${1:-0}" --command="tail -n ${LINES_SHOWN:-100} cp2_jax/run.log"; }

state() { gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)'; }

delete() { gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet; }

# 0: finished; 75: to be run again; other: failed.
follow() {
  local found code
  while true; do
    case $(state 2>/dev/null || echo GONE) in
      READY) ;;
      *) return 75 ;; # preempted: the slice is no more
    esac
    found=$(statuses 2>/dev/null || echo running)
    # As soon as one worker fails the others stop by themselves: with its status after an error; where it was killed (137)
    # with 75, or 134 if JAX's coordination service ends them.
    if ! grep -q running <<< "$found"; then
      code=$(grep -Ev '^(0|75|134|137)$' <<< "$found" | head -n 1 || true)
      if [ -n "$code" ]; then return "$code"; fi
      if grep -Eq '^(75|134|137)$' <<< "$found"; then return 75; fi
      return 0
    fi
    sleep "$poll"
  done
}

# A disk of the slice goes with it: what `keep` would go on from must be elsewhere.
outlives() {
  local argument before=
  for argument in "$@"; do
    case "$before$argument" in
      --workdir=gs://* | --workdir=s3://* | --workdir=/mnt/* | --workdir=/shared/* | --workdir=/nfs/*) return 0 ;;
    esac
    if [ "$argument" = --workdir ]; then before=--workdir=; else before=; fi
  done
  echo "mind: --workdir is in no bucket; if it is on a disk of the slice, it goes with it, and nothing can be resumed" >&2
}

keep() {
  local restarts=0 code
  outlives "$@"
  while true; do
    if [ "$(state 2>/dev/null || echo GONE)" != READY ]; then
      delete 2>/dev/null || true
      create
    fi
    start "$@"
    code=0
    follow || code=$?
    if [ "$code" != 75 ]; then
      logs
      return "$code"
    fi
    restarts=$((restarts + 1))
    if [ "$restarts" -gt "${MAX_RESTARTS:-20}" ]; then
      echo "restarted ${MAX_RESTARTS:-20} times; giving up" >&2
      return 75
    fi
    echo "stopped, to be run again ($restarts)"
  done
}

case "${1:-}" in
  create | copy | delete | statuses) "$1" ;;
  run) shift && start "$@" ;;
  logs) shift && logs "$@" ;;
  status) state && statuses ;;
  stop) on_all "pkill -TERM -f cp2_jax/.venv/bin/python || true" ;; # they save and leave
  keep) shift && keep "$@" ;;
  *)
    sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
