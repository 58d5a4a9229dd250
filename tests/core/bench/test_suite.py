"""A suite from end to end: real training in miniature on two ranks, and every file that it promises."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from core.bench.manifest import latest_rows, read_table
from core.bench.settings import LeakConfig
from core.bench.telemetry.leaks import diagnose
from core.config.load import load
from core.rundir.whole_files import read_json, write_json
from recipes.csa_stage1.assembly import Config
from tests.core.bench.test_tables import ETA_COLUMNS, GPU_COLUMNS, HOST_COLUMNS, MANIFEST_COLUMNS, TIMING_COLUMNS
from tests.recipes import csa_runs

ROOT = Path(__file__).resolve().parents[3]
STEPS = 12
FIGURES_OF_GROUPS = (
    "mode group runs ok_runs unstable_ratio tail_iter_ms_mean tail_iter_ms_std tail_samples_per_sec_mean "
    "tail_samples_per_sec_std tail_targets_per_sec_mean iter_p90_over_p50_mean stability_score rank_spread_ms_p90 "
    "eta_abs_error_sec_p50 eta_rel_error_p50 peak_memory_gib speedup_vs_baseline"
)
TABLES = {
    "skipped_runs.tsv": "mode group repeat reason time",
    "per_run_metrics.csv": (
        "mode group repeat attempt status exit_code duration_sec last_step timing_points tail_iter_ms_mean "
        "tail_samples_per_sec tail_targets_per_sec tail_data_wait_share iter_p90_over_p50 data_p90_over_p50 "
        "step_p90_over_p50 unstable_run_flag rank_spread_ms_p90 eta_abs_error_sec_p50 eta_abs_error_sec_p90 "
        "eta_rel_error_p50 last_loss peak_memory_gib stall_alerts spike_alerts run_dir"
    ),
    "group_summary.csv": FIGURES_OF_GROUPS,
    "ranked_groups.csv": (f"rank rank_by {FIGURES_OF_GROUPS} rank_iter rank_throughput rank_stability rank_balanced"),
}
FILES = {
    "run_manifest.tsv", "timing_points.csv", "eta_points.csv", *TABLES, "summary.json", "summary.md", "summary.png",
    "best_config.json", "best_config.env", "best_overrides.txt", "leaks.json", "git.json", "bench_ab.yaml", "runs",
}  # fmt: skip


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ab` over the contrastive recipe, with DeepSpeed's ZeRO 1 and with a replica a rank."""
    folder = tmp_path_factory.mktemp("bench")
    settings = {
        "name": "suite",
        "recipe": "recipes.csa_stage1.train",
        "config": str(csa_runs.write_config(folder)),
        "max_steps": STEPS,
        "repeats": 1,
        "tail_timing_points": 4,
        "launch": {"cluster": "local", "ranks": 2},
        "numerics": {"attention": None},
        "timing": {"window": 5, "rank_scope": "all", "eta_mode": "global_max", "eta_min_samples": 2},
        "telemetry": {"host_every_s": 0.2},
        "ab": {
            "old_like": {"zero_stage": 1, "log_every_steps": 1, "validation_every_steps": 4, "num_workers": 0},
            "tuned": {
                "zero_stage": 0,
                "log_every_steps": 2,
                "validation_every_steps": 12,
                "checkpoint_every_steps": 12,
            },
        },
        "sweep": {"micro_batch": [1, 3], "rest": {"overrides": ["parallel.strategy=ddp"]}},
    }
    (folder / "bench.yaml").write_text(yaml.safe_dump(settings))
    bench(folder, "ab")
    return folder / "runs" / "suite"


def bench(folder: Path, verb: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "recipes.csa_stage1.bench", verb, "--config", str(folder / "bench.yaml")]
    env = os.environ | {"BATON_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout


def header(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return next(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def test_every_file_is_there_with_the_columns_of_csref(suite: Path) -> None:
    assert header(suite / "run_manifest.tsv")[: len(MANIFEST_COLUMNS)] == MANIFEST_COLUMNS
    assert header(suite / "timing_points.csv") == TIMING_COLUMNS
    assert header(suite / "eta_points.csv") == ETA_COLUMNS
    for row in latest_rows(suite):
        assert header(Path(row["run_dir"], "gpu_telemetry.csv")) == GPU_COLUMNS
        assert header(Path(row["run_dir"], "host_telemetry.csv")) == HOST_COLUMNS
    for name, columns in TABLES.items():
        assert header(suite / name) == columns.split(), name
    assert {path.name for path in suite.iterdir() if path.name[0] != "."} == FILES
    for name in ("per_run_metrics.csv", "group_summary.csv", "ranked_groups.csv"):
        assert len(read_table(suite / name)) == 2
    assert (suite / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert "summary.png" in (suite / "summary.md").read_text() and "ab-tuned-r1" in (suite / "summary.md").read_text()


def test_the_manifest_says_what_really_ran(suite: Path) -> None:
    old, tuned = latest_rows(suite)
    expected = {
        "group": "old_like", "status": "ok", "exit_code": "0", "last_step": "12", "last_eta_remaining_steps": "0",
        "last_eta_mode": "global_max", "zero_stage": "1", "micro_batch": "3", "world_size": "2", "global_batch": "12",
        "deterministic": "0", "wall_clock_breakdown": "0", "log_every_steps": "1", "validation_every_steps": "4",
        "checkpoint_every_steps": "2", "num_workers": "0", "prefetch_factor": "4", "timing_rank_scope": "all",
        "precision_mode_req": "auto", "precision_mode_effective": "fp32", "gpu_name": "", "gpu_telemetry_rows": "0",
        "attn_impl_effective": "", "gpu_telemetry_empty_flag": "1", "host_telemetry_empty_flag": "0", "attempt": "1",
    }  # fmt: skip
    assert {column: old[column] for column in expected} == expected
    changed = {
        "zero_stage": "0",
        "log_every_steps": "2",
        "validation_every_steps": "12",
        "checkpoint_every_steps": "12",
    }
    assert {column: tuned[column] for column in changed} == changed
    assert float(old["last_iter_ms_p50"]) > 0 and int(old["host_telemetry_rows"]) > 3
    assert len(old["git_commit_hash"]) in (0, 40) and old["port"].isdigit()
    assert Path(old["train_log"]).exists() and Path(old["launcher_log"]).exists()


def test_points_add_up(suite: Path) -> None:
    points = [row for row in read_table(suite / "timing_points.csv") if row["group"] == "old_like"]
    assert [int(point["step"]) for point in points] == list(range(3, STEPS + 1))
    for point in points:
        parts = sum(float(point[f"{name}_ms_p50"]) for name in ("data_wait", "preprocess", "fwd", "bwd", "step"))
        assert 0 < float(point["fwd_ms_p50"]) <= float(point["fwd_ms_p90"])
        assert parts < 1.5 * float(point["iter_ms_p90"])
    etas = [row for row in read_table(suite / "eta_points.csv") if row["group"] == "tuned"]
    assert [int(eta["remain_steps"]) for eta in etas] == [8, 6, 4, 2, 0]
    log = (suite / "runs/ab-old_like-r1/attempt_1/train.log").read_text()
    assert all(f"TimingRank step=12 rank={rank} " in log for rank in (0, 1))
    assert "mode=global_max" in log and "Timing(window=5): data_wait_ms:p50=" in log
    assert float(read_table(suite / "per_run_metrics.csv")[0]["rank_spread_ms_p90"]) >= 0


def test_the_best_configuration_trains(suite: Path) -> None:
    best = read_json(suite / "best_config.json")
    assert best["group"] == read_json(suite / "summary.json")["ranking"][0]
    words = (suite / "best_overrides.txt").read_text().split()
    assert words == best["overrides"]
    resolved = load(Config, Path(best["config"]), words)
    assert resolved.parallel.zero.stage == best["variant"]["zero_stage"]
    env = subprocess.run(
        ["bash", "-c", f"set -eu; source {suite / 'best_config.env'}; echo $BEST_GROUP $ZERO_STAGE"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert env.stdout.split() == [best["group"], str(best["variant"]["zero_stage"])]


def test_summaries_are_made_anew_from_what_is_there(suite: Path) -> None:
    (suite / "summary.json").unlink()
    for row in latest_rows(suite):  # what the suite asked for is not what counts
        context = read_json(Path(row["run_dir"], "run_context.json"))
        assert context["effective"] == {
            "eta_mode": "global_max", "speech_attention": None, "text_attention": None, "precision": "fp32",
        }  # fmt: skip
        write_json(Path(row["run_dir"], "run_context.json"), context | {"effective": {"eta_mode": "rank0"}})
    bench(suite.parents[1], "summarize")
    assert {row["eta_mode"] for row in read_table(suite / "eta_points.csv")} == {"rank0"}
    assert "ab-old_like-r1: host memory" in (suite / "summary.md").read_text().split("Not judged:")[1]
    assert read_json(suite / "summary.json")["runs_by_status"] == {"ok": 2}
    said = bench(suite.parents[1], "diagnose", code=int(_leaks(suite)))
    assert "ab-old_like-r1: host memory: too short" in said


def _leaks(suite: Path) -> bool:
    findings = [one for row in latest_rows(suite) for one in diagnose(Path(row["run_dir"]), LeakConfig())]
    return any(one.verdict == "leak" for one in findings)


def test_nothing_to_summarize_is_said(tmp_path: Path) -> None:
    (tmp_path / "bench.yaml").write_text("{name: none, recipe: r, config: c, max_steps: 1}\n")
    bench(tmp_path, "summarize", code=85)
