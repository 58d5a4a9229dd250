"""Telemetry of a GPU that a fake nvidia-smi tells of and of this host; and leaks, injected and not."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from core.bench.manifest import read_table, write_table
from core.bench.settings import LeakConfig
from core.bench.telemetry.leaks import FLAT, LEAK, TOO_SHORT, LeakFinding, diagnose
from core.bench.telemetry.machine import Gpus, free_port
from core.bench.telemetry.recorder import GPU, GPU_COLUMNS, HOST, HOST_COLUMNS, sample_gpus, sample_host, sampled
from core.rundir.files import METRICS
from core.rundir.whole_files import append_record

SMI = """\
#!/bin/bash
case "$*" in
*compute_cap*) echo "NVIDIA H200, 9.0, GPU-b, 700.00, 5, 570.1"; echo "NVIDIA H200, 9.0, GPU-c, 700.00, 5, 570.1" ;;
*) echo "0, GPU-b, NVIDIA H200, 41, 97, 30, 512.33, 1980, 3201, 70123, 143771" ;;
esac
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is PATH's first."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


def write_smi(tools: Path, text: str = SMI) -> None:
    (tools / "nvidia-smi").write_text(text)
    (tools / "nvidia-smi").chmod(0o755)


def test_a_gpu_is_sampled(tools: Path, tmp_path: Path) -> None:
    write_smi(tools)
    began = time.time()
    with sampled(tmp_path / GPU, GPU_COLUMNS, sample_gpus, every_s=0.05):
        while len(read_table(tmp_path / GPU)) < 3:
            assert time.time() < began + 60
            time.sleep(0.02)
    row = read_table(tmp_path / GPU)[0]
    assert (row["gpu_index"], row["gpu_uuid"], row["mem_used_mib"], row["power_w"]) == ("0", "GPU-b", "70123", "512.33")
    assert began <= float(row["epoch_sec"]) <= time.time() and row["timestamp"].startswith("20")
    facts = Gpus.seen().facts()
    assert facts["gpu_uuid_list"] == "GPU-b;GPU-c" and facts["gpu_cc"] == "9.0" and facts["pcie_gen"] == "5"


@pytest.mark.parametrize("smi", [None, "#!/bin/bash\nexit 9\n"])
def test_without_a_gpu_there_is_a_header(smi: str | None, tools: Path, tmp_path: Path) -> None:
    if smi is not None:
        write_smi(tools, smi)
    with sampled(tmp_path / GPU, GPU_COLUMNS, sample_gpus, every_s=0.05):
        time.sleep(0.2)
    assert (tmp_path / GPU).read_text().rstrip("\n").split(",") == list(GPU_COLUMNS)
    assert len(read_table(tmp_path / GPU)) == 0 and Gpus.seen().facts()["gpu_name"] == ""


def test_no_gpu_is_asked_where_none_is_visible(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_smi(tools)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Gpus.seen().rows == []


def test_the_host_and_all_processes_of_the_run_are_sampled(tmp_path: Path) -> None:
    """A child of the launched process holds 200 MiB; telemetry finds it."""
    hold = "import time; block = bytearray(200 * 2**20); block[::4096] = b'x' * len(block[::4096]); time.sleep(600)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    try:
        sample = partial(sample_host, process.pid, tmp_path)
        with sampled(tmp_path / HOST, HOST_COLUMNS, sample, every_s=0.1):
            deadline = time.monotonic() + 60
            while not any(int(row["rss_kib"]) > 200 * 1024 for row in read_table(tmp_path / HOST)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        os.killpg(process.pid, 9)
        process.wait()
    row = read_table(tmp_path / HOST)[-1]
    assert list(row) == list(HOST_COLUMNS)
    assert 0 < int(row["mem_available_kib"]) < int(row["mem_total_kib"]) and float(row["cpu_idle_pct"]) <= 100
    assert int(row["rss_kib"]) < 400 * 1024, "of the run only"


def test_a_port_in_use_is_passed_over() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) > port


MINUTES, EVERY_S = 20, 5


def trace(folder: Path, *, mib_per_min: float, seed: int, on: str, minutes: float = MINUTES) -> None:
    """Samples of a run that grows by so much after its warm-up, with noise and the sawtooth of a cache."""
    rng = np.random.default_rng(seed)
    times_s = np.arange(0, minutes * 60, EVERY_S)
    warm = np.minimum(times_s / 60, 2.0) * 400.0  # a queue that fills in the first two minutes
    held = 8000.0 + warm + mib_per_min * times_s / 60 + rng.normal(0, 40, len(times_s)) + 100 * (times_s % 90) / 90
    if on == "gpu":
        rows = [{"epoch_sec": t, "gpu_index": 0, "mem_used_mib": mib} for t, mib in zip(times_s, held, strict=True)]
        write_table(folder / GPU, GPU_COLUMNS, rows)
    else:
        rows = [{"epoch_sec": t, "rss_kib": mib * 1024} for t, mib in zip(times_s, held, strict=True)]
        write_table(folder / HOST, HOST_COLUMNS, rows)


def the_only(findings: list[LeakFinding]) -> LeakFinding:
    (finding,) = findings
    return finding


@pytest.mark.parametrize("on", ["gpu", "host"])
@pytest.mark.parametrize("seed", range(10))
def test_an_injected_leak_is_found_and_a_flat_trace_passes(on: str, seed: int, tmp_path: Path) -> None:
    (tmp_path / "leaking").mkdir()
    trace(tmp_path / "leaking", mib_per_min=50.0, seed=seed, on=on)
    found = the_only(diagnose(tmp_path / "leaking", LeakConfig()))
    assert found.verdict == LEAK and found.slope == pytest.approx(50.0, abs=8.0), found
    (tmp_path / "flat").mkdir()
    trace(tmp_path / "flat", mib_per_min=0.0, seed=seed, on=on)
    assert the_only(diagnose(tmp_path / "flat", LeakConfig())).verdict == FLAT


@pytest.mark.parametrize(
    ("on", "mib_per_min", "verdict"), [("host", 12.0, FLAT), ("host", 130.0, LEAK), ("gpu", 12.0, FLAT)]
)
def test_thresholds(on: str, mib_per_min: float, verdict: str, tmp_path: Path) -> None:
    trace(tmp_path, mib_per_min=mib_per_min, seed=0, on=on)
    assert the_only(diagnose(tmp_path, LeakConfig())).verdict == verdict


def test_a_step_up_is_a_drift(tmp_path: Path) -> None:
    rows = [{"epoch_sec": 5 * i, "gpu_index": 0, "mem_used_mib": 1000 if i < 200 else 6000} for i in range(240)]
    write_table(tmp_path / GPU, GPU_COLUMNS, rows)
    found = the_only(diagnose(tmp_path, LeakConfig(gpu_mib_per_min=10_000.0)))
    assert found.verdict == LEAK and "5000 MiB higher" in found.reason


def test_a_short_run_is_not_judged(tmp_path: Path) -> None:
    trace(tmp_path, mib_per_min=500.0, seed=0, on="gpu", minutes=3)
    assert the_only(diagnose(tmp_path, LeakConfig())).verdict == TOO_SHORT


@pytest.mark.parametrize(("slower", "verdict"), [(1.05, FLAT), (1.5, LEAK)])
def test_iterations_that_become_slower(slower: float, verdict: str, tmp_path: Path) -> None:
    quantiles = {
        f"{part}_s_p{q}": 0.1 for part in ("data_wait", "move", "forward", "backward", "update") for q in (50, 90)
    }
    for step in range(100):
        iter_s = 0.5 * (1 + (slower - 1) * step / 100)
        at = f"2026-01-01T00:{step // 10:02d}:{step % 10 * 6:02d}Z"
        timing = {**quantiles, "step_s_p50": iter_s, "step_s_p90": iter_s}
        place = {"phase": "train", "step": step, "token": 1, "link": 1, "time": at}
        append_record(tmp_path / METRICS, {**place, **timing})
    assert the_only(diagnose(tmp_path, LeakConfig())).verdict == verdict


def test_what_lies_outside_of_training_does_not_count(tmp_path: Path) -> None:
    """Loading libraries and drawing reports looks like a leak and an end of it."""
    trace(tmp_path, mib_per_min=0.0, seed=0, on="host", minutes=60)
    rows = read_table(tmp_path / HOST)
    for row in rows[-300:]:
        row["rss_kib"] = str(30_000 * 1024)
    write_table(tmp_path / HOST, HOST_COLUMNS, rows)
    assert the_only(diagnose(tmp_path, LeakConfig())).verdict == LEAK
    for minute in range(30):
        place = {"phase": "train", "step": minute, "token": 1, "link": 1, "time": f"1970-01-01T00:{minute:02d}:00Z"}
        append_record(tmp_path / METRICS, place)
    assert the_only(diagnose(tmp_path, LeakConfig())).verdict == FLAT
