# Sourced by the other scripts: makes .venv, installs requirements.txt and this project into it (editable:
# changes of the code count at once), and sets $python. Safe to run twice: an
# installation that was broken off is done again, one that is complete is left alone.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! .venv/bin/python -c '' 2>/dev/null; then
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then base=$candidate; break; fi
  done
  [ -n "${base:-}" ] || { echo "Python 3.11 or newer is needed; name one with PYTHON=/path/to/python" >&2; exit 1; }
  echo "making .venv with $("$base" --version)"
  "$base" -m venv --clear .venv
fi
python=$PWD/.venv/bin/python

installed=.venv/installed-$(cat requirements.txt pyproject.toml | cksum | tr ' ' '-')
if [ ! -e "$installed" ]; then
  echo "installing requirements.txt into .venv (a few minutes the first time)"
  # --no-compile: Python compiles the modules that are used when they are imported, a tenth of what is installed.
  "$python" -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
  touch "$installed"
fi
