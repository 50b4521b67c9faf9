"""Say what a run needs before it is started: python scripts/plan.py --help; the same as `cp2 plan`."""

import _cli

if __name__ == "__main__":
    _cli.run("plan")
