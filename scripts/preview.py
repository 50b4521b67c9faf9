"""Show what a run will see, or has learned: python scripts/preview.py --help; the same as `cp2 preview`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("preview")
