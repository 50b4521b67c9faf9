#!/usr/bin/env bash
# Run a command as N processes with M CPU devices each on this machine: what several hosts do, without several hosts.
#
#     bash scripts/launch/local_multihost.sh 2 4 scripts/pretrain.py --config … --workdir …
#
# The command is a Python script that takes --coordinator, --num_processes and --process_id. Lines of output begin with the
# process's number. SIGTERM and Ctrl-C stop all processes. If one ends with an error (status 1 or 2), the others, which would
# wait for it, are ended after PATIENCE (5) seconds; if it was killed, or left with 75 alone, they have six times as long to
# notice it. The status is 0 if all were, else 75 ("run again") if all that failed say so, were stopped before they could, or
# were ended by JAX's coordination service (134), else the first other one. See docs/launch_local.md.
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

patience=${PATIENCE:-5}
last=$(mktemp -d) # the last line of each process's errors
trap 'rm -rf "$last"' EXIT

pids=() codes=() stopped=""
stop() { # bash lets processes in the background ignore SIGINT, so Ctrl-C is passed on as SIGTERM
  stopped=1
  [ ${#pids[@]} = 0 ] || kill -TERM "${pids[@]}" 2>/dev/null
}
quiet="/^\[Gloo\] Rank [0-9]* is connected to /d" # the library that connects the processes, a line for each device
trap stop TERM INT
for ((process = 0; process < processes; process++)); do
  [ -n "$stopped" ] && exit 75 # those that were started have been told
  "$python" "$@" --coordinator="localhost:$port" --num_processes="$processes" --process_id="$process" \
    > >(sed -u "$quiet;s/^/[$process] /") 2> >(sed -u "$quiet;s/^/[$process] /" | tee >(tail -n 1 > "$last/$process") >&2) &
  pids+=($!) codes+=("")
done
echo "processes: ${pids[*]}"

status=0 culprit="" since=0 told="" unheard="" wait="$patience"
collect() { # the status of processes that have ended; says whether others are left
  local process code left=1
  for ((process = 0; process < processes; process++)); do
    [ -n "${codes[process]}" ] && continue
    if kill -0 "${pids[process]}" 2>/dev/null; then
      left=0
      continue
    fi
    wait "${pids[process]}"
    code=$?
    codes[process]=$code
    if [ "$code" = 134 ]; then code=75; fi
    if [ "$code" = 143 ] && [ -n "$stopped" ]; then code=75 unheard=1; fi # before Python had begun to listen
    if [ "$code" != 0 ] && { [ "$status" = 0 ] || [ "$status" = 75 ]; }; then status=$code; fi
    if [ "$code" = 0 ]; then continue; fi
    if [ "$code" = 1 ] || [ "$code" = 2 ]; then
      if [ -z "$culprit" ] || [ "$wait" != "$patience" ]; then culprit=$process since=$SECONDS wait=$patience; fi
    elif [ -z "$culprit" ]; then
      culprit=$process since=$SECONDS wait=$((6 * patience))
    fi
  done
  return "$left"
}
while collect; do
  if [ -n "$culprit" ] && [ $((SECONDS - since)) -ge "$wait" ]; then
    waiting=()
    for ((process = 0; process < processes; process++)); do
      if [ -z "${codes[process]}" ]; then waiting+=("$process"); fi
    done
    if [ -z "$told" ]; then
      echo "process $culprit ended with status ${codes[culprit]}, so the rest (${waiting[*]}) is ended, too:" \
        "$(cat "$last/$culprit")" >&2
      told=$SECONDS
      for process in "${waiting[@]}"; do kill -TERM "${pids[process]}" 2>/dev/null; done
    elif [ "${codes[culprit]}" != 75 ] && [ $((SECONDS - told)) -ge "$patience" ]; then # JAX takes SIGTERM for a request to stop after the next step
      for process in "${waiting[@]}"; do kill -KILL "${pids[process]}" 2>/dev/null; done
    fi
  fi
  sleep 0.2
done
[ -z "$unheard" ] || echo "stopped by a signal before the run had begun: run the same command again" >&2
sleep 0.2 # for the last lines to come through sed
exit "$status"
