"""Say what a run needs before it is started: python scripts/plan.py --help; the same as `cp2 plan`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("plan")
