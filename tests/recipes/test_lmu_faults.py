"""Bad input and faults of a run: each is said, none costs what was reached."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut

from core.rundir.exit_codes import ExitCode
from core.rundir.files import BAD_SAMPLES, CHECKPOINTS, LEDGER, METRICS
from core.rundir.whole_files import read_records
from tests.recipes import runs

RATE_HZ = 16_000


def _bad_cuts(folder: Path, cut: MonoCut) -> list[MonoCut]:
    """One of each kind of file that cannot be used."""
    num = round(cut.duration * RATE_HZ)
    noise = np.random.default_rng(0).normal(scale=0.1, size=num).astype(np.float32)
    soundfile.write(folder / "truncated.wav", noise, RATE_HZ)
    content = (folder / "truncated.wav").read_bytes()
    (folder / "truncated.wav").write_bytes(content[: len(content) // 2])
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "wrong_rate.wav", noise[: num // 2], RATE_HZ // 2)
    soundfile.write(folder / "stereo.wav", np.stack([noise, noise], axis=1), RATE_HZ)
    noise[num // 2] = np.nan
    soundfile.write(folder / "nan.wav", noise, RATE_HZ, subtype="FLOAT")
    names = ("missing", "empty", "truncated", "wrong_rate", "stereo", "nan")
    return [runs.of_file(cut, folder / f"{name}.wav") for name in names]


def test_bad_samples_are_skipped_and_listed_once(tmp_path: Path) -> None:
    good = runs.demo_cuts("train", 10)
    bad = _bad_cuts(tmp_path, good[0])
    config = runs.write_config(tmp_path / "corpus", good + bad)
    # over several epochs, and over two links
    common = ("train.max_steps=16", "loader.num_workers=2")
    assert runs.link(config, tmp_path / "runs", *common, "run.link_steps=8")[0] == [ExitCode.CONTINUE]
    codes, text = runs.link(config, tmp_path / "runs", *common)
    assert codes == [ExitCode.DONE], text
    run = tmp_path / "runs" / "tiny"
    listed = [record["sample_id"] for record in read_records(run / BAD_SAMPLES)]
    assert sorted(listed) == sorted(cut.id for cut in bad)
    assert all({"reason", "path", "step"} <= record.keys() for record in read_records(run / BAD_SAMPLES))
    trained = {name for step in runs.samples(run) for batch in step for name in batch if name}
    assert trained == {cut.id for cut in good}
    assert len(runs.losses(run)) == 16


def test_too_many_bad_samples_end_the_run(tmp_path: Path) -> None:
    good = runs.demo_cuts("train", 12)
    missing = [runs.of_file(cut, tmp_path / f"missing-{place}.wav") for place, cut in enumerate(good)]
    config = runs.write_config(tmp_path / "corpus", good + missing)
    codes, text = runs.link(config, tmp_path / "runs", "train.max_steps=30")
    assert codes == [ExitCode.DATA], text
    assert "10 are allowed" in text and BAD_SAMPLES in text
    ended = list(read_records(tmp_path / "runs" / "tiny" / LEDGER))[-1]
    assert ended["event"] == "ended" and ended["exit_code"] == ExitCode.DATA


def test_a_second_process_in_the_run_directory_refuses(config: Path, tmp_path: Path) -> None:
    first = runs.begin(config, tmp_path, hook=lambda place: time.sleep(0.15))
    end = time.monotonic() + 20
    while not any(record["phase"] == "train" for record in read_records(tmp_path / "tiny" / METRICS)):
        assert time.monotonic() < end, first.text
        time.sleep(0.02)
    codes, text = runs.link(config, tmp_path)
    assert codes == [ExitCode.LEASE] and "in use by job" in text, text
    assert first.wait() == [ExitCode.DONE], first.text
    assert len(runs.losses(tmp_path / "tiny")) == 6


def _die(place: int) -> None:
    if place == 4:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_holder_that_nobody_has_buried_holds_nothing(config: Path, tmp_path: Path) -> None:
    first = runs.begin(config, tmp_path, hook=_die)
    os.waitid(os.P_PID, first.processes[0].pid or 0, os.WEXITED | os.WNOWAIT)  # stays a zombie
    codes, text = runs.link(config, tmp_path)
    assert codes == [ExitCode.DONE], text
    assert first.wait() == [-signal.SIGKILL]


def test_changes_damage_and_their_consequences(config: Path, tmp_path: Path) -> None:
    """A run in two links; between them its model is changed, and then its newest checkpoint is damaged."""
    run = tmp_path / "tiny"
    assert runs.link(config, tmp_path, "run.link_steps=4")[0] == [ExitCode.CONTINUE]
    kept = (run / "config.yaml").read_bytes()
    codes, text = runs.link(config, tmp_path, "model.encoder.dim=32", "optim.lr=2e-2")
    assert codes == [ExitCode.CONFIG], text
    assert "model.encoder.dim: 16 -> 32" in text
    assert (run / "config.yaml").read_bytes() == kept
    before = kept.decode().replace("  constant_cuts: false\n", "")  # as if begun when there was no such key yet
    assert before != kept.decode()
    (run / "config.yaml").write_text(before, encoding="utf-8")

    newest = run / CHECKPOINTS / "step_00000004"
    victim = max((path for path in (newest / "weights").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    codes, text = runs.link(config, tmp_path)
    assert codes == [ExitCode.DONE], text
    assert f"{newest} is damaged and not used" in text
    assert newest.with_name("step_00000004.damaged").is_dir()
    starts = [record["step"] for record in read_records(run / METRICS) if record["phase"] == "start"]
    assert starts[-1] == 2, starts
    assert len(runs.losses(run)) == 6


def test_all_mistakes_of_a_configuration_before_anything_is_made(tmp_path: Path) -> None:
    config = runs.write_config(tmp_path)
    text = config.read_text(encoding="utf-8")
    for right, wrong in (("max_cuts: 2", "max_cutz: 2"), ("lr: 1e-2", "lr: fast"), ("dropout: 0.2", "dropout: 1.5"),
                         ("max_steps: 6", "max_steps: 0")):  # fmt: skip
        text = text.replace(right, wrong)
    config.write_text(text, encoding="utf-8")
    done = runs.start(tmp_path)
    assert done.returncode == ExitCode.CONFIG
    lines = text.splitlines()
    for key in ("max_cutz", "lr: fast", "dropout: 1.5", "max_steps: 0"):
        number = next(place for place, line in enumerate(lines, start=1) if key in line)
        assert f"tiny.yaml:{number}: " in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()
