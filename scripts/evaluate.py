"""Score a finetuned model: python scripts/evaluate.py --help; the same as `cp2 evaluate`."""

import _cli

if __name__ == "__main__":
    _cli.run("evaluate")
