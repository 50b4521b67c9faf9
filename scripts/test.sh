#!/usr/bin/env bash
# Make the environment and run the tests: bash scripts/test.sh [pytest arguments]
# In two processes (TEST_PROCESSES), each with whole files: half of the time goes into compilation, which uses one core.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile "$@"
