"""The contrastive benchmark as a job array on a real SLURM: every run a task, failures tried again, nothing twice."""

import json
import subprocess
import sys
from pathlib import Path

from core.bench.manifest import latest_rows, read_rows, read_table
from core.rundir.whole_files import read_json
from launchers.here.environment import ROOT
from tests.slurm.conftest import HEADER, Slurm

TASK = 'source slurm/env.sh\nexec python -m recipes.csa_stage1.bench task "$@"\n'


def begin(slurm: Slurm, *, crash_at: int) -> str:
    """Queue a suite over the stub program, one group of which crashes while a marker is there."""
    sub = slurm.folder / "bench.sub"
    sub.write_text(HEADER.format(name="bench", nodes=2, tasks=2) + TASK)
    (slurm.folder / "recipe.yaml").write_text("optim: {}\n")
    settings = {
        "name": "suite",
        "recipe": "tests.core.bench.stub",
        "config": str(slurm.folder / "recipe.yaml"),
        "max_steps": 5,
        "repeats": 2,
        "launch": {"cluster": "slurm", "sub": str(sub)},
        "numerics": {"precision": None, "attention": None},
        "watch": {"stop_grace_s": 1.0},
        "ab": {"old_like": {}, "tuned": {"overrides": ["stub.step_s=0.005", f"stub.crash_marker={crash_at}"]}},
    }
    (slurm.folder / "bench.yaml").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "recipes.csa_stage1.bench", "ab", "--config", str(slurm.folder / "bench.yaml")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_a_suite_is_a_job_array_and_only_what_failed_is_done_again(slurm: Slurm) -> None:
    suite, crash = slurm.runs / "suite", slurm.folder / "crash"
    crash.touch()
    said = begin(slurm, crash_at=3)
    assert "job array" in said
    slurm.wait_for(lambda: not slurm.queue(), "the end of the array", run="suite-ab-1")
    rows = {(row["group"], row["repeat"]): row for row in latest_rows(suite)}
    assert {place: row["status"] for place, row in rows.items()} == {
        ("old_like", "1"): "ok", ("tuned", "1"): "failed", ("old_like", "2"): "ok", ("tuned", "2"): "failed",
    }, slurm.log("suite-ab-2")  # fmt: skip
    assert read_json(suite / "summary.json")["is_partial"]
    assert {row["hostname"] for row in rows.values()} <= set(slurm.cluster.nodes)
    finished = {path: path.stat().st_mtime_ns for path in suite.glob("runs/*old_like*/*/*")}

    crash.unlink()
    begin(slurm, crash_at=3)
    slurm.wait_for(lambda: not slurm.queue(), "the end of the second array", run="suite-ab-2")
    assert {row["status"] for row in latest_rows(suite)} == {"ok"}
    assert {path: path.stat().st_mtime_ns for path in suite.glob("runs/*old_like*/*/*")} == finished
    assert sorted(row["attempt"] for row in read_rows(suite)) == ["1", "1", "1", "1", "2", "2"]
    content = read_json(suite / "summary.json")
    assert not content["is_partial"] and content["best_group"] == "tuned"
    assert len(read_table(suite / "timing_points.csv")) == 4 * 5

    assert "all 4 runs" in begin(slurm, crash_at=3)
    assert not slurm.queue() and Path(suite / "summary.png").exists()
