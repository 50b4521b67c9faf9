"""The table of what benchmarks/gpu.sh measured, against what is aimed at; rows that were not say why.

    python benchmarks/gpu_table.py gpu_results [--keep DIR]

Writes gpu.json and table.txt into the folder; with --keep copies of both, and the rows' logs in one file, into another.
"""

import argparse
import fcntl
import json
import pathlib
import shutil
import tarfile

MISSING = "not yet measured"


def read(folder):
    """Return {row: its figures} and {row: why it has none, or not all}."""
    figures, statuses = {}, {path.stem: path.read_text().strip() for path in folder.glob("*.status")}
    for path in folder.glob("*.json"):
        if path.stem == "gpu":
            continue
        try:
            figures[path.stem] = json.loads(path.read_text())
        except ValueError:  # ended while it wrote
            statuses.setdefault(path.stem, "its figures cannot be read")
    return figures, statuses


# what | what is aimed at | its form | the row and its figure; or "row / peer's row variant" for how many times as fast.
TABLE = """
ResNet-50 + ASPP, update alone             |              | .1f s | step_r50 seconds
  dense count over matrix peak             | >= 0.55      | .3f   | step_r50 dense_share_of_peak
  with the forms measured here             |              | .1f s | step_r50_forms seconds
  against PyTorch, whole networks compiled | >= 1.3       | .2f x | step_r50 / peer_r50 best
  against PyTorch, autotuned               |              | .2f x | step_r50 / peer_r50_tuned autotuned
  against the original's settings          |              | .2f x | step_r50 / peer_r50_original original
whole step from uint8 crops                | <= 80 ms     | .1f s | whole whole_seconds
  of it augmentation                       | <= 2 ms      | .2f   | augment augment_ms
  blur in float32, ms                      |              | .2f   | augment blur_float32_ms
  blur in float16 (default), ms            |              | .2f   | augment blur_float16_ms
  with CUDA graphs, as pretraining runs it |              | .1f s | end_to_end step_seconds
  update, 4 groups                         |              | .1f s | groups update_groups_seconds
  update, 4 groups, strided keys           |              | .1f s | groups update_strided_seconds
  profile: parts over busy time            | 0.98 to 1.02 | .3f   | whole profile_share
ViT-S/16 + ASPP, update alone              | <= 55 ms     | .1f s | step_vit seconds
  with XLA's attention                     |              | .1f s | step_vit_xla seconds
  against PyTorch, whole networks compiled | >= 1.3       | .2f x | step_vit / peer_vit best
finetuning 512 x 512, batch 16             |              | .1f s | finetune seconds
  against PyTorch                          | >= 1.2       | .2f x | finetune / peer_finetune best
  ViT-S, 1,025 tokens                      |              | .1f s | finetune_vit seconds
evaluation 512 x 512, batch 16             |              | .1f s | evaluate seconds
  against PyTorch                          | >= 1.2       | .2f x | evaluate / peer_evaluate best
memory, batch 256: in use, GB              |              | .2f   | memory measured_gb
  predicted over in use                    | 0.95 to 1.05 | .3f   | memory prediction
  largest batch by prediction              |              | .0f   | largest largest_batch
  likewise, in 80 GB                       |              | .0f   | largest largest_batch_in_80_gb
  largest batch with remat                 |              | .0f   | largest_remat largest_batch
  likewise, in 80 GB                       |              | .0f   | largest_remat largest_batch_in_80_gb
JPEGs to trained step, in_batch, samples/s |              | .0f   | end_to_end samples_per_second
  share of waiting for input               | < 0.05       | .3f   | end_to_end input_wait_share
  cores needed, independent                |              | .1f   | end_to_end cores_needed_independent
16 seeds in one program over one: pretraining  | >= 5     | .2f   | many_seeds pretraining_times_one
  likewise, finetuning                     |              | .2f   | many_seeds finetuning_times_one
"""


def figure(figures, form, source):
    """Return (the figure as text or None where it was not measured, the row that it waits for)."""
    row, *rest = source.split()
    if rest[0] == "/":
        _, peer, variant = rest
        ours, theirs = figures.get(row, {}).get("seconds"), figures.get(peer, {}).get(f"torch_{variant}_seconds")
        if theirs and not ours:
            return f"it: {1e3 * theirs:.1f} ms", row
        return (f"{theirs / ours:{form.split()[0]}} x" if theirs else None), peer
    found = figures.get(row, {}).get(rest[0])
    if not found:
        return None, row
    return (f"{1e3 * found:{form.split()[0]}} ms" if form.endswith(" s") else f"{found:{form}}"), row


def table(figures, statuses):
    """Return the table as text."""
    machines = sorted({f"{row['card']}, {row['date']}, jax {row['jax']}" for row in figures.values() if "card" in row})
    text = [f"{'; '.join(machines) or 'nothing measured'}", f"{'what':46s} {'aim':>13s} {'figure':>16s}"]
    for line in TABLE.strip().splitlines():
        what, aim, form, source = (cell.rstrip() for cell in line.split("|"))
        found, row = figure(figures, form.strip(), source)
        text.append(f"{what:46s} {aim.strip():>13s} {found or MISSING:>16s}  {statuses.get(row, '')}".rstrip())
    for row in figures.get("convs", {}).get("rows", []):
        passes = " ".join(f"{row[f'{name}_wall_ms']:8.3f}" for name in ("forward", "inputs", "weights"))
        text.append(f"  {row['shape']:16s} {row['form']:14s} {passes} ms")
    forms = {k: v for k, v in figures.get("convs", {}).items() if k.startswith(("pool_", "norm_"))}
    text += [f"  {name:46s} {found:10.3f} ms" for name, found in forms.items()]
    for name, found in figures.get("attention", {}).items():
        if name.endswith("_ms"):
            text.append(f"  attention {name:36s} {found:10.3f} ms")
    return "\n".join(text)


def write(folder, text, found, keep):
    """Write both files, whole or not at all: the program may be ended at any time."""
    for name, content in (("table.txt", text), ("gpu.json", json.dumps(found, indent=1))):
        (folder / f"{name}.new").write_text(content + "\n")
        (folder / f"{name}.new").replace(folder / name)
        if keep:
            shutil.copy(folder / name, keep)
    if keep:
        with tarfile.open(keep / "logs.tar.gz", "w:gz") as logs:
            for path in sorted(folder.glob("*.log")):
                logs.add(path, path.name)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--keep", type=pathlib.Path, help="another folder")
    args = parser.parse_args(arguments)
    with open(args.folder / "table.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # rows end side by side
        figures, statuses = read(args.folder)
        parts = figures.get("whole", {}).get("profile_ms", {})
        if parts.get("busy"):
            figures["whole"]["profile_share"] = parts["all operations"] / parts["busy"]
        text = table(figures, statuses)
        write(args.folder, text, {"rows": figures, "not_whole": statuses}, args.keep)
    print(text)


if __name__ == "__main__":
    main()
