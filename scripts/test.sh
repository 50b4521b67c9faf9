#!/usr/bin/env bash
# Make the environment and run the tests: bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "$0")/environment.sh"
"$python" -m ruff check .
"$python" -m pytest "$@"
