"""TensorBoard shows each step once over a resume; W&B keeps one run over links and never stops a training."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.report.loggers import LoggerConfig, WandbConfig, open_loggers


def train_record(step: int, loss: float | None) -> dict[str, Any]:
    return {"phase": "train", "step": step, "time": "now", "token": 1, "link": 0, "loss": loss, "non_finite": ["x"]}


def test_tensorboard_purges_what_the_resumed_link_repeats(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps, offset in ((0, (10, 20, 30, 40), 0.0), (20, (30, 40, 50), 0.5)):
        (writer,) = open_loggers(LoggerConfig(), tmp_path, step=start, run_config={})
        for step in steps:
            writer.write(train_record(step, step + offset))
        writer.write({"phase": "valid", "step": steps[-1], "valid_wer": 0.5, "token": 1, "link": 0})
        writer.close()
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert sorted(curves.Tags()["scalars"]) == ["train/loss", "valid/valid_wer"]
    events = [(event.step, event.value) for event in curves.Scalars("train/loss")]
    assert events == [(10, 10.0), (20, 20.0), (30, 30.5), (40, 40.5), (50, 50.5)]


def test_no_logger_is_opened_unasked(tmp_path: Path) -> None:
    assert open_loggers(LoggerConfig(tensorboard=False), tmp_path, step=0, run_config={}) == []
    assert list(tmp_path.iterdir()) == []


class FakeWandb:
    """As much of wandb as is used; `reachable=False` fails as wandb does without key or network."""

    class Error(Exception):
        pass

    def __init__(self, *, reachable: bool) -> None:
        self.errors = SimpleNamespace(Error=self.Error)
        self.reachable, self.inits, self.logged, self.finished = reachable, [], [], 0

    def init(self, **arguments: Any) -> "FakeWandb":
        self.inits.append(arguments)
        if arguments["mode"] == "online" and not self.reachable:
            raise self.Error("no API key configured")
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        assert (name, step_metric) in {("step", None), ("*", "step")}

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


CONFIG = LoggerConfig(tensorboard=False, wandb=WandbConfig(project="speech"))


def test_wandb_keeps_its_run_over_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb(reachable=True)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for start in (0, 20):
        (writer,) = open_loggers(CONFIG, tmp_path, step=start, run_config={"steps": 3})
        writer.write(train_record(start + 10, 1.5))
        writer.write(train_record(start + 20, None))
        writer.close()
    first, second = fake.inits
    assert first == second and first["id"] and first["resume"] == "allow" and first["config"] == {"steps": 3}
    assert (first["project"], first["name"], first["mode"]) == ("speech", tmp_path.name, "online")
    assert fake.logged == [{"step": 10, "train/loss": 1.5}, {"step": 30, "train/loss": 1.5}]
    assert fake.finished == 2


def test_wandb_out_of_reach_goes_offline_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeWandb(reachable=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    open_loggers(CONFIG, tmp_path, step=0, run_config={})
    assert [arguments["mode"] for arguments in fake.inits] == ["online", "offline"]
    assert "no API key configured" in caplog.text and "wandb sync" in caplog.text


def test_wandb_missing_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install"):
        open_loggers(CONFIG, tmp_path, step=0, run_config={})
