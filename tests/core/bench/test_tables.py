"""Files and columns of the benchmark as users' tools know them, its plan, its figures and its order of groups."""

import statistics
from pathlib import Path

import pytest
import yaml

from core.bench import kpis, points
from core.bench.attempt import Attempt, Ended
from core.bench.manifest import COLUMNS, MANIFEST, append_row, latest_rows, read_rows, read_table, write_table
from core.bench.page import page
from core.bench.plan import choices, overrides, planned_runs
from core.bench.row import row_of
from core.bench.settings import BenchConfig
from core.bench.suite import Suite
from core.bench.telemetry import recorder as telemetry
from core.bench.telemetry.leaks import FLAT, LEAK, TOO_SHORT, LeakFinding, leaking, not_judged
from core.bench.telemetry.machine import Gpus
from core.config.load import load, to_yaml
from core.config.schema import ConfigError
from core.rundir.files import METRICS
from core.rundir.whole_files import append_record, write_json

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
RECIPE = RECIPES / "csa_stage1"
OLD, NEW = ["NVIDIA V100", "7.0", "GPU-a", "300", "3", "570"], ["NVIDIA H200", "9.0", "GPU-b", "700", "5", "570"]

# As CSRef writes them, in its order.
MANIFEST_COLUMNS = [
    "mode", "group", "repeat", "status", "exit_code", "duration_sec", "last_step", "last_iter_ms_p50",
    "last_eta_step", "last_eta_remaining_steps", "last_eta_sec", "last_eta_hms", "last_eta_mode",
    "iter_p90_over_p50", "data_p90_over_p50", "step_p90_over_p50", "unstable_run_flag", "port", "run_dir",
    "launcher_log", "train_log", "zero_stage", "micro_batch", "world_size", "global_batch", "deterministic",
    "cudnn_benchmark", "wall_clock_breakdown", "log_every_steps", "validation_every_steps",
    "checkpoint_every_steps", "num_workers", "prefetch_factor", "dataset_manifest_path", "dataset_use_trim",
    "dataset_offline_trimmed", "enable_cuda_sync_timing", "timing_rank_scope", "precision_mode_req",
    "precision_mode_effective", "model_load_dtype_effective", "attn_impl_effective",
    "speech_attn_impl_effective", "text_attn_impl_effective", "torch_compile_enabled", "tf32_enabled",
    "gpu_name", "gpu_cc", "gpu_uuid_list", "gpu_power_limit_w", "pcie_gen", "driver_version",
    "git_commit_hash", "git_commit_short", "git_branch", "git_dirty", "gpu_telemetry_rows",
    "gpu_telemetry_empty_flag", "host_telemetry_rows", "host_telemetry_empty_flag",
]  # fmt: skip
TIMING_COLUMNS = [
    "mode", "group", "repeat", "index", "step", "data_wait_ms_p50", "data_wait_ms_p90", "preprocess_ms_p50",
    "preprocess_ms_p90", "fwd_ms_p50", "fwd_ms_p90", "bwd_ms_p50", "bwd_ms_p90", "step_ms_p50", "step_ms_p90",
    "iter_ms_p50", "iter_ms_p90", "train_log",
]  # fmt: skip
ETA_COLUMNS = [
    "mode",
    "group",
    "repeat",
    "index",
    "step",
    "remain_steps",
    "eta_sec",
    "eta_hms",
    "eta_mode",
    "train_log",
]
GPU_COLUMNS = [
    "timestamp", "epoch_sec", "gpu_index", "gpu_uuid", "gpu_name", "temp_c", "util_gpu_pct", "util_mem_pct", "power_w",
    "sm_clock_mhz", "mem_clock_mhz", "mem_used_mib", "mem_total_mib",
]  # fmt: skip
HOST_COLUMNS = [
    "timestamp", "epoch_sec", "load1", "load5", "load15", "cpu_user_pct", "cpu_system_pct", "cpu_idle_pct",
    "mem_total_kib", "mem_available_kib", "mem_used_kib", "swap_total_kib", "swap_free_kib", "rss_kib",
]  # fmt: skip


def test_columns_are_those_of_csref_and_ours_come_after_them() -> None:
    assert len(MANIFEST_COLUMNS) == 60
    assert list(COLUMNS[:60]) == MANIFEST_COLUMNS
    assert list(points.TIMING_COLUMNS) == TIMING_COLUMNS
    assert list(points.ETA_COLUMNS) == ETA_COLUMNS
    assert list(telemetry.GPU_COLUMNS) == GPU_COLUMNS
    assert list(telemetry.HOST_COLUMNS) == HOST_COLUMNS


def small(**changes: object) -> dict[str, object]:
    return {"name": "s", "recipe": "r", "config": "recipes/csa_stage1/config.yaml", "max_steps": 500, **changes}


def read(folder: Path, **changes: object) -> BenchConfig:
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(small(**changes)))
    return load(BenchConfig, path)


def test_the_suite_that_ships_has_csrefs_groups() -> None:
    config = load(BenchConfig, RECIPE / "bench.yaml")
    runs = planned_runs(config, "ab")
    assert [run.name for run in runs[:3]] == ["ab-old_like-r1", "ab-tuned-r1", "ab-old_like-r2"] and len(runs) == 6
    old, tuned = runs[0].variant, runs[1].variant
    assert (old.log_every_steps, old.validation_every_steps, old.checkpoint_every_steps) == (1, 500, 500)
    assert (old.zero_stage, old.num_workers, old.prefetch_factor, old.wall_clock_breakdown) == (1, 2, 2, True)
    assert (tuned.log_every_steps, tuned.validation_every_steps, tuned.checkpoint_every_steps) == (20, 5000, 5000)
    grid = planned_runs(config, "sweep")
    assert len(grid) == 3 * 2 * 2 * 2 * 3 and grid[0].group == "z0_mb64_w4_p2"


@pytest.mark.parametrize("name", ["bench", "tiny_bench"])
@pytest.mark.parametrize("mode", ["ab", "sweep"])
def test_every_run_of_the_suites_that_ship_is_a_valid_configuration(mode: str, name: str) -> None:
    from recipes.csa_stage1.assembly import Config

    suite = load(BenchConfig, RECIPE / f"{name}.yaml")
    for run in planned_runs(suite, mode):  # type: ignore[arg-type]
        if run.repeat > 1:
            continue
        resolved = load(Config, RECIPES.parent / suite.config, overrides(suite, run.variant, Gpus([NEW])))
        assert resolved.train.max_steps == suite.max_steps and resolved.parallel.strategy == "deepspeed"
        assert resolved.parallel.zero.stage == (run.variant.zero_stage or 0)
        assert resolved.loader.num_workers == run.variant.num_workers
        assert resolved.run.link_steps is None and resolved.train.early_stop is None
        if mode == "sweep":
            assert resolved.plan.max_cuts == run.variant.micro_batch
            assert resolved.plan.max_duration_s == run.variant.micro_batch * resolved.plan.max_cut_s


def test_numerics_follow_the_gpu(tmp_path: Path) -> None:
    config = read(tmp_path, ab={"a": {"micro_batch": 64}, "b": {"overrides": ["optim.lr=1"]}}, overrides=["run.seed=1"])
    (one, other) = planned_runs(config, "ab")[:2]
    for gpus, precision in (([NEW], "bf16"), ([NEW, OLD], "fp16"), ([], "fp32")):
        assert f"parallel.precision={precision}" in choices(config, one.variant, Gpus(gpus))
    assert set(choices(config, one.variant, Gpus([]))) == {
        "plan.max_cuts=64", "plan.max_duration_s=192.0", "model.speech.attention=sdpa", "model.text.attention=sdpa",
        "parallel.precision=fp32", "run.seed=1",
    }  # fmt: skip
    assert choices(config, other.variant, Gpus([]))[-1] == "optim.lr=1"
    measured = overrides(config, one.variant, Gpus([]))
    assert measured[:2] == ["train.max_steps=500", "train.timing.window=100"]
    assert "optim.schedule.warmup_steps=500" in measured
    (tmp_path / "told.yaml").write_text("optim: {schedule: {total_steps: 9000, warmup_steps: 1000}}\n")
    told = read(tmp_path, config=str(tmp_path / "told.yaml"), ab={"a": {}, "b": {}})
    measured = overrides(told, planned_runs(told, "ab")[0].variant, Gpus([]))
    assert "optim.schedule.total_steps=500" in measured and "optim.schedule.warmup_steps=500" in measured


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "ab needs two groups"),
        ({"ab": {"one": {}}}, "ab needs two groups"),
        ({"ab": {"one": {}, "a/b": {}}}, "ab.a/b: a group's name"),
    ],
)
def test_a_suite_that_compares_nothing_is_refused(
    changes: dict[str, object], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    with pytest.raises(ConfigError, match=says):
        Suite.begin(read(tmp_path, **changes), "ab")
    assert not (tmp_path / "s").exists()


def test_settings_survive_their_file(tmp_path: Path) -> None:
    config = load(BenchConfig, RECIPE / "bench.yaml")
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load(BenchConfig, tmp_path / "again.yaml") == config


def test_a_table_holds_what_it_was_given(tmp_path: Path) -> None:
    rows = [{"a": 'say "x", y', "b": 1.5}, {"a": "two\nlines\tand a tab", "b": None}]
    for name in ("t.csv", "t.tsv"):
        write_table(tmp_path / name, ["a", "b"], rows)
        found = read_table(tmp_path / name)
        assert found == [{"a": 'say "x", y', "b": "1.5"}, {"a": "two lines and a tab", "b": ""}]


def test_the_last_attempt_counts_and_a_torn_row_costs_only_itself(tmp_path: Path) -> None:
    place = {"mode": "ab", "group": "g", "repeat": 1}
    for attempt, status in ((1, "failed"), (2, "ok")):
        append_row(tmp_path, {**place, "attempt": attempt, "status": status}, beside=tmp_path, retries=0)
    with (tmp_path / MANIFEST).open("a") as file:
        file.write('ab\t"torn')
    append_row(tmp_path, {**place, "group": "h", "attempt": 1, "status": "ok"}, beside=tmp_path, retries=0)
    assert [(row["group"], row["attempt"]) for row in read_rows(tmp_path)] == [("g", "1"), ("g", "2"), ("h", "1")]
    assert [(row["group"], row["status"]) for row in latest_rows(tmp_path)] == [("g", "ok"), ("h", "ok")]


def write_run(folder: Path, iters_s: list[float], *, seconds_a_step: int = 10) -> Path:
    """A run directory whose records tell these iterations; a step takes 10 s by their clock, and the ETA 11."""
    folder.mkdir(parents=True)
    for step, iter_s in enumerate(iters_s, start=1):
        parts = {f"{part}_s_p50": 0.01 * iter_s for part in ("data_wait", "move", "forward", "backward", "update")}
        parts |= {name.replace("p50", "p90"): 2 * value for name, value in parts.items()}
        seconds = step * seconds_a_step
        told = {"eta_s": 11.0 * (len(iters_s) - step), "eta_step_s": iter_s, "eta_samples": step, "targets_per_s": 5.0}
        append_record(folder / METRICS, {
            "phase": "train", "step": step, "token": 1, "link": 1, "loss": 1.0, **told, **parts,
            "time": f"2026-01-01T00:{seconds // 60:02d}:{seconds % 60:02d}Z",
            "step_s_p50": iter_s, "step_s_p90": 1.5 * iter_s,
        })  # fmt: skip
    return folder


def figures(folder: Path, group: str, iters_s: list[float], *, batch: int, status: str = "ok") -> kpis.Figures:
    run_dir = write_run(folder / f"{group}{len(list(folder.iterdir()))}", iters_s)
    config = read(folder, max_steps=len(iters_s), tail_timing_points=3)
    row = dict.fromkeys(COLUMNS, "") | {"mode": "ab", "group": group, "repeat": "1", "status": status, "attempt": "1"}
    row |= {"run_dir": str(run_dir), "global_batch": str(batch), "unstable_run_flag": "0"}
    return kpis.run_figures(config, row)


def test_figures_of_a_run_are_of_its_tail(tmp_path: Path) -> None:
    iters_s = [9.0, 9.0, 1.0, 2.0, 3.0]
    found = figures(tmp_path, "g", iters_s, batch=64)
    assert found["tail_iter_ms_mean"] == 2000.0 and found["tail_samples_per_sec"] == 64 * 1000 / 2000.0
    assert found["iter_p90_over_p50"] == pytest.approx(1.5) and found["step_p90_over_p50"] == pytest.approx(2.0)
    assert found["tail_targets_per_sec"] == 5.0 and found["timing_points"] == 5
    assert found["eta_rel_error_p50"] == pytest.approx(0.1)
    assert found["eta_abs_error_sec_p50"] == statistics.median([4.0, 3.0, 2.0, 1.0])


def test_the_page_says_what_could_not_be_judged() -> None:
    def found(series: str, verdict: str) -> LeakFinding:
        return LeakFinding(series, verdict, 9, 1.0, 0.0, 0.0, 0.0, "rises")

    findings = {
        "short": [found("host memory", TOO_SHORT), found("iteration", TOO_SHORT)],
        "mixed": [found("host memory", FLAT), found("gpu 0 memory", TOO_SHORT)],
        "silent": [],
        "leaking": [found("host memory", LEAK)],
    }
    unknown = ["short: host memory, iteration: too short", "mixed: gpu 0 memory: too short",
               "silent: nothing was measured"]  # fmt: skip
    assert not_judged(findings) == unknown

    def section(leaks: list[str], judged: int, unknown: list[str]) -> list[str]:
        content = dict.fromkeys(("suite", "time", "is_partial", "runs_planned"), "") | {"runs_by_status": {}}
        content |= {"groups": [], "ranking": [], "leaks": leaks}  # type: ignore[dict-item]
        content |= {"leaks_judged": judged, "leaks_not_judged": unknown}  # type: ignore[dict-item]
        text = page(content, [], [], [], picture=None)
        return [line for line in text.split("## Leaks")[1].split("Every column")[0].splitlines() if line]

    listed = ["Not judged:", *(f"- {one}" for one in unknown)]
    assert section([], 0, unknown) == ["Nothing could be judged.", *listed]
    assert section([], 2, []) == ["None in 2 series."]
    assert section(leaking(findings), 2, unknown) == ["- leaking: host memory rises", *listed]


def test_what_really_computed_is_what_the_run_says(tmp_path: Path) -> None:
    """The suite asked for sdpa and auto; the run noted what became of that."""
    folder = tmp_path / "s" / "runs" / "ab-a-r1" / "attempt_1"
    write_run(folder, [1.0, 1.0])
    write_json(folder / "ended.json", vars(Ended("ok", 0, "", 20.0)))
    write_json(tmp_path / "s" / "git.json", dict.fromkeys(("commit_hash", "commit_short", "branch", "dirty"), ""))
    (folder / "config.yaml").write_text(
        "parallel: {precision: auto}\nmodel: {speech: {attention: sdpa}, text: {attention: sdpa}}\n"
    )
    config = read(tmp_path, ab={"a": {}, "b": {}}, timing={"eta_mode": "global_max"})
    run = planned_runs(config, "ab")[0]
    columns = ("precision_mode_effective", "attn_impl_effective", "speech_attn_impl_effective",
               "text_attn_impl_effective", "last_eta_mode")  # fmt: skip
    row = row_of(config, run, Attempt(folder), Gpus([]))
    assert [row[column] for column in columns] == [None] * 5, "it did not say"
    told = {
        "precision": "fp16",
        "speech_attention": "eager",
        "text_attention": "flash_attention_2",
        "eta_mode": "rank0",
    }
    write_json(folder / "run_context.json", {"effective": told})
    row = row_of(config, run, Attempt(folder), Gpus([]))
    assert [row[column] for column in columns] == ["fp16", "eager", "eager", "flash_attention_2", "rank0"]


def test_rank_spread(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(
        "Step 1: Loss 1.0\n"
        "TimingRank step=1 rank=0 loss=1.0 data_wait=1 preprocess=1 fwd=1 bwd=1 step=1 iter=10.00\n"
        "TimingRank step=1 rank=1 loss=nan data_wait=1 preprocess=1 fwd=1 bwd=1 step=1 iter=13.50\n"
        "TimingRank step=2 rank=0 loss=1.0 data_wait=1 preprocess=1 fwd=1 bwd=1 step=1 iter=11.00\n"
        "TimingRank step=2 rank=1 loss=1.0 data_wait=1 preprocess=1 fwd=1 bwd=1 step=1 iter=10.50\n"
    )
    assert points.rank_spreads_ms(tmp_path) == [3.5, 0.5]


@pytest.mark.parametrize(
    ("by", "order"),
    [
        ("iter", ["small", "steady", "large"]),
        ("throughput", ["large", "small", "steady"]),
        ("stability", ["steady", "large", "small"]),
        ("balanced", ["large", "steady", "small"]),
    ],
)
def test_every_ranking_has_its_own_winner(by: str, order: list[str], tmp_path: Path) -> None:
    def run(group: str, iter_ms: float, batch: int, ratio: float, unstable: str, **more: object) -> kpis.Figures:
        speed = 1000 * batch / iter_ms
        measured = {"tail_iter_ms_mean": iter_ms, "tail_samples_per_sec": speed, "iter_p90_over_p50": ratio}
        return {"mode": "ab", "group": group, "status": "ok", "unstable_run_flag": unstable, **measured, **more}

    runs = [
        run("small", 100.0, 64, 1.6, "1"), run("small", 120.0, 64, 1.6, "0"),  # 585 samples/s, stability 2.4
        run("large", 200.0, 256, 1.5, "0"),  # 1280 samples/s, stability 1.5
        run("steady", 130.0, 64, 1.1, "0"),  # 492 samples/s, stability 1.1
        run("broken", 1.0, 999, 1.0, "0", status="failed"),
    ]  # fmt: skip
    groups = kpis.group_figures(runs, baseline="small")
    assert {group["group"]: group["stability_score"] for group in groups if group["ok_runs"]} == {
        "small": pytest.approx(2.4), "large": pytest.approx(1.5), "steady": pytest.approx(1.1),
    }  # fmt: skip
    assert groups[1]["speedup_vs_baseline"] == pytest.approx(1280 / ((640 + 64000 / 120) / 2))
    ranked = kpis.ranked(groups, by=by)
    assert [group["group"] for group in ranked] == order, "and a group without a good run is in none"
    assert [group["rank"] for group in ranked] == [group[f"rank_{by}"] for group in ranked] == [1, 2, 3]


@pytest.mark.parametrize(("iter_ratio", "step_ratio", "flag"), [(2.1, 1, True), (1.9, 2.9, False), (1.0, 3.1, True)])
def test_what_counts_as_unstable(iter_ratio: float, step_ratio: float, flag: bool) -> None:
    from core.bench.row import is_unstable

    assert is_unstable({"iter_p90_over_p50": iter_ratio, "step_p90_over_p50": step_ratio}) is flag
