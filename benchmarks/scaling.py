"""The table of docs/scaling.md: memory, work and communication per chip, each row from a compilation for the slice.

    pip install 'cp2_jax[tpu]'
    python benchmarks/scaling.py [--json docs/scaling.json] [--only v4-32] [--table]

Rows that the JSON has already are kept, so that it may be stopped at any time and goes on; --table compiles nothing. A
full-size row takes minutes. Rows never compiled are shown as such, not estimated.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = {"pretrain_r50_aspp": "ResNet-50 + ASPP", "pretrain_vit_aspp": "ViT-S + ASPP"}
SLICES = ("v3-8", "v3-32", "v4-32", "v4-128", "v5e-16")
DEVICES = {"v3-8": 8, "v3-32": 32, "v4-32": 16, "v4-128": 64, "v5e-16": 16, "v5e-1": 1}
BATCHES = (8, 32, 128)
# Besides: does a batch of 256 fit one chip of 16 GB?
EXTRA = [("pretrain_r50_aspp", "v5e-1", 256, {"remat": True}), ("pretrain_vit_aspp", "v5e-1", 256, {"remat": True})]


def wanted():
    rows = [(config, where, each, {}) for each in BATCHES for where in SLICES for config in CONFIGS]
    return sorted(rows, key=lambda row: (list(CONFIGS).index(row[0]), SLICES.index(row[1]), row[2])) + EXTRA


def name_of(config, where, each, options):
    return " ".join([config, where, str(each), *(f"{key}={value}" for key, value in options.items())])


def compile_row(config, where, each, options):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "plan.json"
        flags = {f"config.{key}": value for key, value in (options | {"batch_size": each * DEVICES[where]}).items()}
        command = [
            sys.executable,
            "scripts/plan.py",
            f"--config=configs/{config}.py",
            f"--topology={where}",
            f"--json={path}",
            *(f"--{key}={value}" for key, value in flags.items()),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if not path.exists():
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
        return summary(json.loads(path.read_text()))


def summary(plan):
    """Keep what the table shows; of the collectives, their sums."""
    kept = {
        key: plan[key]
        for key in (
            "devices",
            "batch_size",
            "parameters",
            "optimizer",
            "queue",
            "batch",
            "temporaries",
            "code",
            "peak",
            "memory",
            "fits",
            "flops",
            "error",
        )
    }
    found = plan["collectives"] or []
    gathers = [c for c in found if c["kind"] not in ("all-reduce", "collective-permute")]
    return kept | {
        "moved": sum(c["moved"] for c in found) if plan["collectives"] is not None else None,
        "collectives": len(found),
        "gathers": [[c["kind"], c["bytes"]] for c in gathers],
        "bound": plan["plan"]["bound"],
        "compute": plan["plan"]["compute"],
        "decode_rate": plan["plan"]["decode_rate"],
        "epochs_per_day": plan["plan"]["epochs_per_day"],
    }


COLUMNS = (
    "model",
    "slice",
    "batch per device",
    "temporaries, GB",
    "peak, GB",
    "fits",
    "TFLOP",
    "sent per device, MB",
    "gathers",
    "step, ms",
    "epochs a day",
    "decoded per host, 1/s",
)


def table(rows):
    """Return markdown; the last three columns are bounds."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for config, where, each, options in wanted():
        row = rows.get(name_of(config, where, each, options))
        cells = [CONFIGS[config] + "".join(f", {key}" for key in options), where, str(each)]
        if row is None:
            cells.append("not compiled")
        else:
            peak = f"{row['peak'] / 1e9:.2f} of {row['memory'] / 1e9:.0f}" if row["peak"] else "?"
            fits = "yes" if row["fits"] else "**no**"
            cells += [f"{row['temporaries'] / 1e9:.2f}" if row["temporaries"] else "", peak, fits]
        if row and row["bound"]:
            gathers = ", ".join(f"{kind} {count / 1e3:.0f} kB" for kind, count in row["gathers"]) or "none"
            cells += [
                f"{row['flops'] / 1e12:.2f}",
                f"{row['moved'] / 1e6:.1f}",
                gathers,
                f"{1e3 * row['bound']:.1f}",
                f"{row['epochs_per_day']:.0f}",
                f"{row['decode_rate']:.0f}",
            ]
        lines.append(cells + [""] * (len(COLUMNS) - len(cells)))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default=str(ROOT / "docs" / "scaling.json"))
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    arguments = parser.parse_args()
    path = pathlib.Path(arguments.json)
    rows = json.loads(path.read_text()) if path.exists() else {}
    for row in wanted():
        name = name_of(*row)
        if arguments.table or name in rows or arguments.only not in name:
            continue
        rows[name] = compile_row(*row)
        path.write_text(json.dumps(rows, indent=1) + "\n")
        print(name, "compiled", file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
