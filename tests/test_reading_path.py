"""One training step can be followed from its YAML file to `optimizer.step` through few files.

Measured, not claimed: at each stop of the way the files on the call stack, from `main` down to the stop itself, are
what a reader comes through. What lies below a stop (how YAML is parsed, how a file is decoded, what is inside the
model) can be taken for what its docstring says, and is not counted there. All files that run until the first update
are counted apart: those whose functions were called, from `main` on; that a file is imported does not count.
"""

import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch

from core.config.load import load
from core.data.batch import collate
from core.losses.ctc import ctc_loss
from core.recognition.asr import AsrExamples
from core.rundir.exit_codes import ExitCode
from core.samplers.plan import rank_micro_batches
from recipes.lmu_gigaspeech import train

ROOT = Path(__file__).resolve().parents[1]
MOST_FILES, MOST_LINES = 11, 1_450
MOST_EXECUTED = 70
STOPS: dict[CodeType, str] = {
    load.__code__: "the configuration",
    rank_micro_batches.__code__: "what the step trains on",
    AsrExamples.__call__.__code__: "a sample",
    collate.__code__: "a batch",
    ctc_loss.__code__: "the loss",
    torch.Tensor.backward.__code__: "the gradients",
}


def stop_of(frame: FrameType) -> str | None:
    if frame.f_code.co_name == "step" and isinstance(frame.f_locals.get("self"), torch.optim.Optimizer):
        return "the update"
    return STOPS.get(frame.f_code)


def is_ours(file: str) -> bool:
    return bool({ROOT / "core", ROOT / "recipes"} & set(Path(file).parents))


def test_few_files_are_executed_until_the_first_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    executed: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        if stop_of(frame) == "the update":
            sys.setprofile(None)
        elif frame.f_code.co_name != "<module>":
            executed.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        words = ["run.link_steps=1", "loggers.tensorboard=false"]
        code = train.main(["--config", "recipes/lmu_gigaspeech/tiny.yaml", *words])
    finally:
        sys.setprofile(None)
    assert code == ExitCode.CONTINUE
    files = sorted(str(Path(file).relative_to(ROOT)) for file in executed if is_ours(file))
    assert len(files) <= MOST_EXECUTED, f"{len(files)} files: {files}"


def test_a_step_can_be_followed_through_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    reached: dict[str, set[Path]] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or (stop := stop_of(frame)) is None:
            return
        stack: set[Path] = set()
        above: FrameType | None = frame
        while above is not None:
            stack.add(Path(above.f_code.co_filename))
            above = above.f_back
        ours = {file.relative_to(ROOT) for file in stack if is_ours(str(file))}
        reached.setdefault(stop, set()).update(ours)

    sys.setprofile(note)
    try:
        words = ["run.link_steps=2", "loggers.tensorboard=false"]  # without scoring
        code = train.main(["--config", "recipes/lmu_gigaspeech/tiny.yaml", *words])
    finally:
        sys.setprofile(None)
    assert code == ExitCode.CONTINUE
    assert reached.keys() == {*STOPS.values(), "the update"}
    path = set.union(*reached.values())
    num_lines = {str(file): len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in sorted(path)}
    assert len(path) <= MOST_FILES and sum(num_lines.values()) <= MOST_LINES, num_lines
