"""A run in static shapes whose layers torch compiles: a few graphs serve all shapes, of training and of validation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from core.data.index import ManifestIndex, write_manifest
from core.rundir.exit_codes import ExitCode
from core.rundir.whole_files import append_record, read_records
from tests.recipes import hubert_runs, runs

SETTINGS = ("data.crop.max_s=2.6", "plan.max_cut_s=2.6", "plan.min_cut_s=1.0", "plan.max_duration_s=6.0",
            "plan.max_cuts=null", "plan.num_buckets=4", "plan.static_shapes=true", "plan.micro_batches_per_step=1",
            "model.num_layers=3")  # fmt: skip


def recorded(function: Callable[..., Any], log: Path, what: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """The function, which writes down first what it is called with."""

    def called(*arguments: Any, **settings: Any) -> Any:
        append_record(log, what(*arguments))
        return function(*arguments, **settings)

    return called


def write_clips(path: Path) -> None:
    """16 English clips of a second to the longest."""
    clips = ManifestIndex.open(runs.DEMO / "english_train.jsonl")
    by_length = [int(row) for row in clips.durations_s.argsort(kind="stable") if clips.durations_s[row] >= 1.0]
    write_manifest([clips.read(row) for row in by_length[:: len(by_length) // 16]], path)


def test_few_graphs_serve_all_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all layers one for the first shape, one for all others, one for layers passed over, one for validation."""
    config = hubert_runs.write_configs(tmp_path / "corpus")[1]
    write_clips(tmp_path / "corpus" / "train.jsonl")
    codes, text = hubert_runs.prepare(config, tmp_path, *SETTINGS, iteration=1)
    assert codes == [ExitCode.DONE], text

    log, train, compile_module = tmp_path / "seen.jsonl", hubert_runs.TRAIN[1], torch.nn.Module.compile
    counted = recorded(aot_eager, log, lambda graph, inputs: {"graph": len(graph.graph.nodes)})
    # In place of inductor, whose C++ takes a minute, and whose linker takes no path with a space.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend=counted))
    for name in ("loss_fn", "score"):
        seen = recorded(getattr(train, name), log, lambda model, batch, name=name: {name: list(batch.audio.shape)})
        monkeypatch.setattr(train, name, seen)
    words = (*SETTINGS, "parallel.compile=true", "train.max_steps=12", "train.validate_every_steps=6")
    codes, text = hubert_runs.train(config, tmp_path, *words, iteration=1, timeout_s=500)
    assert codes == [ExitCode.DONE], text
    (kinds, values) = zip(*((kind, value) for record in read_records(log) for kind, value in record.items()
                            if kind in ("graph", "loss_fn", "score")), strict=True)  # fmt: skip
    trained = {tuple(shape) for kind, shape in zip(kinds, values, strict=True) if kind == "loss_fn"}
    assert len(trained) == 4 and kinds.count("loss_fn") == 12 and kinds.count("score") == 2
    assert 2 <= kinds.count("graph") <= 4
    assert "graph" not in kinds[kinds.index("score") + 2 :], "what one validation and the updates before it compiled"
