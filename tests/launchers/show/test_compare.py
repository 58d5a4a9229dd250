"""Runs side by side."""

import json
from pathlib import Path

import pytest

from launchers.show.compare import differing
from tests.launchers.conftest import Launcher, write_ledger

PNG = b"\x89PNG\r\n\x1a\n"


def make_run(run: Path, *, lr: float, dropout: float, wer: float) -> None:
    write_ledger(
        run,
        {"event": "started", "link": 1, "step": 0},
        {"event": "ended", "link": 1, "exit_code": 0, "step": 40, "token": 1, "train_s": 75.0},
    )
    records = [{"phase": "train", "step": k, "token": 1, "link": 1, "time": "x", "loss": lr * k} for k in (10, 20, 40)]
    records += [{"phase": "valid", "step": 40, "token": 1, "link": 1, "time": "x", "valid_wer": wer}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "config.yaml").write_text(f"run: {{name: {run.name}}}\noptim: {{lr: {lr}}}\nmodel: {{dropout: {dropout}}}\n")
    (run / "scores.json").write_text(json.dumps({"test/wer_greedy": wer, "test/words": 100, "step": 40}))
    (run / "DONE").touch()


def test_a_table_and_a_picture(launcher: Launcher, runs: Path) -> None:
    make_run(runs / "one", lr=0.1, dropout=0.1, wer=0.5)
    make_run(runs / "other", lr=0.2, dropout=0.1, wer=0.25)
    answer = launcher("compare", "one", "other")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    lines = {line.split()[0]: line.split() for line in answer.stdout.splitlines() if line.strip()}
    assert lines["other"] == ["other", "done", "40", "8", "1", "min", "15", "s", "25.00", "%"]
    assert lines["optim.lr"] == ["optim.lr", "0.1", "0.2"]
    assert "dropout" not in answer.stdout, "only what differs"
    assert max(len(line) for line in answer.stdout.splitlines() if not line.startswith("see")) <= 80
    assert (runs / "comparison_one_other.png").read_bytes().startswith(PNG)


def test_for_programs(launcher: Launcher, runs: Path, tmp_path: Path) -> None:
    make_run(runs / "one", lr=0.1, dropout=0.1, wer=0.5)
    write_ledger(runs / "bare", {"event": "started", "link": 1, "step": 0})
    answer = launcher("compare", "one", "bare", "--json", "--picture", tmp_path / "mine.png")
    found = json.loads(answer.stdout)
    assert [(row["run"], row["scores"].get("test/wer_greedy")) for row in found["runs"]] == [
        ("one", 0.5),
        ("bare", None),
    ]
    assert found["picture"] == str(tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_bytes().startswith(PNG)


def test_a_picture_that_fails_costs_only_the_picture(launcher: Launcher, runs: Path, tmp_path: Path) -> None:
    make_run(runs / "one", lr=0.1, dropout=0.1, wer=0.5)
    make_run(runs / "other", lr=0.2, dropout=0.1, wer=0.25)
    answer = launcher("compare", "one", "other", "--picture", tmp_path / "no such folder" / "x.png")
    assert answer.returncode == 0
    assert "no picture: FileNotFoundError" in answer.stdout
    assert "25.00 %" in answer.stdout


@pytest.mark.parametrize("words, says", [(["one"], "needs two runs or more"), (["one", "oter"], "no run 'oter'")])
def test_too_few_or_unknown(launcher: Launcher, runs: Path, words: list[str], says: str) -> None:
    make_run(runs / "one", lr=0.1, dropout=0.1, wer=0.5)
    answer = launcher("compare", *words)
    assert answer.returncode == 85
    assert says in answer.stderr


def test_settings_that_differ() -> None:
    settings = [{"run.name": "a", "x": 1, "y": [1], "z": 0}, {"run.name": "b", "x": 1, "y": [2]}, {}]
    assert differing(settings) == [{"y": [1], "z": 0}, {"y": [2]}, {}]
