"""The benchmark of a recipe that knows nothing of it: started by the launcher, over a stub and over real training."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.bench import kpis
from core.bench.manifest import latest_rows, read_table
from core.bench.plan import choices, overrides, planned_runs
from core.bench.settings import BenchConfig, Mode
from core.bench.suite import Suite
from core.bench.telemetry.machine import Gpus
from core.config.load import load
from core.config.schema import ConfigError
from core.rundir.whole_files import read_json
from recipes.lmu_gigaspeech.assembly import Config

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = ROOT / "recipes/lmu_gigaspeech/tiny_bench.yaml"


def bench(runs: Path, verb: str, *words: str) -> str:
    command = [sys.executable, "-m", "launchers", "bench", verb, "--config", str(SETTINGS), *words]
    env = os.environ | {"BATON_RUNS": str(runs), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                        "PYTHONPATH": str(ROOT)}  # fmt: skip
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_launcher_starts_it_and_hands_on_what_was_typed(tmp_path: Path) -> None:
    said = bench(tmp_path, "both", "recipe=tests.core.bench.stub", "max_steps=4", "name=own")
    assert "best: " in said
    suite = tmp_path / "own"
    assert {row["group"] for row in latest_rows(suite)} == {"no_workers", "one_worker", "mb2", "mb4"}
    assert read_json(suite / "summary.json")["runs_by_status"] == {"ok": 4}
    assert "nothing" not in bench(tmp_path, "diagnose", "name=own")


def test_it_trains_a_recipe_that_knows_nothing_of_it(tmp_path: Path) -> None:
    bench(tmp_path, "sweep", "sweep.micro_batch=[2]", "max_steps=8")
    suite = tmp_path / "lmu_tiny_bench"
    (row,) = latest_rows(suite)
    told = {"status": "ok", "last_step": "8", "micro_batch": "2", "global_batch": ""}
    told["precision_mode_effective"] = "fp32"
    assert {column: row[column] for column in told} == told
    (group,) = read_table(suite / "ranked_groups.csv")
    assert float(group["tail_targets_per_sec_mean"]) > 0 and group["tail_samples_per_sec_mean"] == ""
    words = (suite / "best_overrides.txt").read_text().split()
    assert load(Config, ROOT / "recipes/lmu_gigaspeech/tiny.yaml", words).plan.max_cuts == 2


@pytest.mark.parametrize("mode", ["ab", "sweep"])
def test_every_run_of_the_suite_is_a_valid_configuration(mode: Mode) -> None:
    suite = load(BenchConfig, SETTINGS)
    for run in planned_runs(suite, mode):
        resolved = load(Config, ROOT / suite.config, overrides(suite, run.variant, Gpus([])))
        assert resolved.train.max_steps == suite.max_steps and resolved.parallel.precision == "fp32"


def test_attention_is_asked_for_where_there_is_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    suite = load(BenchConfig, SETTINGS)
    variant = planned_runs(suite, "ab")[0].variant
    assert choices(suite, variant, Gpus([])) == ["loader.num_workers=0", "parallel.precision=fp32"]
    with pytest.raises(ConfigError, match=r"numerics\.attention=eager: .*tiny\.yaml has no model of"):
        Suite.begin(load(BenchConfig, SETTINGS, ["numerics.attention=eager"]), "ab")
    assert not list(tmp_path.iterdir())


def test_targets_a_second_rank_groups_whose_batches_hold_as_much_as_fits() -> None:
    def run(group: str, iter_ms: float, targets: float) -> kpis.Figures:
        measured = {"tail_iter_ms_mean": iter_ms, "tail_targets_per_sec": targets, "iter_p90_over_p50": 1.0}
        return {"mode": "ab", "group": group, "status": "ok", "unstable_run_flag": "0", **measured}

    groups = kpis.group_figures([run("short", 100.0, 300.0), run("long", 200.0, 600.0)], baseline="short")
    assert [group["speedup_vs_baseline"] for group in groups] == [1.0, 2.0]
    assert [group["group"] for group in kpis.ranked(groups, by="throughput")] == ["long", "short"]
    assert [group["group"] for group in kpis.ranked(groups, by="iter")] == ["short", "long"]
