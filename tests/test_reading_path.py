"""One training step can be followed from its YAML file to `optimizer.step` through few files.

Measured, not claimed: at each stop of the way the files on the call stack, from `main` down to the stop itself, are
what a reader comes through. What lies below a stop (how YAML is parsed, how a file is decoded, what is inside the
model) can be taken for what its docstring says, and is not counted.
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
        ours = {file for file in stack if {ROOT / "core", ROOT / "recipes"} & set(file.parents)}
        reached.setdefault(stop, set()).update(file.relative_to(ROOT) for file in ours)

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
