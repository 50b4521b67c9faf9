"""`cp2 compare`: the table of finished runs."""

import json

from helpers.command_line import cp2


def test_seeds_of_one_name_are_averaged_and_pictures_named(tmp_path, capsys):
    for name, miou in (("a0", 0.5), ("a1", 0.7), ("b", 0.25)):
        (tmp_path / name / "pictures").mkdir(parents=True)
        (tmp_path / name / "scores.json").write_text(json.dumps({"mean_iou": miou, "pixel_accuracy": 0.9}))
    (tmp_path / "b" / "pictures" / "curves.png").write_bytes(b"")
    status, out, error = cp2(capsys, "compare", f"CP2={tmp_path}/a0", f"CP2={tmp_path}/a1", f"scratch={tmp_path}/b")
    assert status == 0, error
    lines = out.splitlines()
    assert lines[1].split() == ["CP2", "60.00", "±", "14.14", "90.00", "±", "0.00"]  # 0.1 * sqrt(2)
    assert lines[2].split() == ["scratch", "25.00", "90.00"]
    assert lines[3].split() == ["scratch", str(tmp_path / "b" / "pictures" / "curves.png")]


def test_an_unfinished_run_is_one_line(tmp_path, capsys):
    status, _, error = cp2(capsys, "compare", f"CP2={tmp_path}")
    assert status == 2 and error.startswith("error: no scores of a finished finetuning in")
    assert len(error.splitlines()) == 1
