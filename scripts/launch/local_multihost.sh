#!/usr/bin/env bash
# Run a command as N processes with M CPU devices each on this machine: what several hosts do, without several hosts.
#
#     bash scripts/launch/local_multihost.sh 2 4 scripts/pretrain.py --config … --workdir …
#
# The command is a Python script that takes --coordinator, --num_processes and --process_id. Lines of output begin with the
# process's number. SIGTERM and Ctrl-C go to all processes. The status is 0 if all were, else 75 ("run again") if all that
# failed say so or were ended by JAX's coordination service (134), else the first other one. See docs/launch_local.md.
set -uo pipefail

if [ $# -lt 3 ] || ! [[ $1 =~ ^[1-9][0-9]*$ && $2 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: local_multihost.sh PROCESSES DEVICES_PER_PROCESS SCRIPT [FLAGS]" >&2
  exit 2
fi
processes=$1 devices=$2
shift 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')}
export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"

pids=()
for ((process = 0; process < processes; process++)); do
  "$python" "$@" --coordinator="localhost:$port" --num_processes="$processes" --process_id="$process" \
    > >(sed -u "s/^/[$process] /") 2> >(sed -u "s/^/[$process] /" >&2) &
  pids+=($!)
done
echo "processes: ${pids[*]}"
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM
trap 'kill -INT "${pids[@]}" 2>/dev/null' INT

status=0
for pid in "${pids[@]}"; do
  wait "$pid"
  code=$?
  # A signal to this script interrupts `wait`, not the process.
  while kill -0 "$pid" 2>/dev/null; do
    wait "$pid"
    code=$?
  done
  if [ "$code" = 134 ]; then code=75; fi
  if [ "$code" != 0 ] && { [ "$status" = 0 ] || [ "$status" = 75 ]; }; then status=$code; fi
done
sleep 0.2 # for the last lines to come through sed
exit "$status"
