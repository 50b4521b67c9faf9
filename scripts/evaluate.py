"""Score a finetuned model: python scripts/evaluate.py --help; the same as `cp2 evaluate`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("evaluate")
