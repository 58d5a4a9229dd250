"""DeepSpeed's Adam where every machine can build it, torch's where one cannot."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.distributed import Ranks
from core.optim.optim import OptimConfig
from core.parallel.deepspeed import engine as deepspeed_engine
from core.parallel.deepspeed.zero import ZeroConfig
from tests.core.parallel.toy import toy
from tests.ranks import run_on_ranks

OPTIM = OptimConfig(name="adamw", lr=1e-2, weight_decay=0.1)


class Fused(torch.optim.AdamW):
    """Stands in for the kernel where it can be built."""


def choose(ranks: Ranks, adam: str, failing: tuple[int, ...], log: logging.Handler | None = None) -> str:
    """The class of the optimizer that a rank with a GPU gets; or the error."""

    def build(groups: list[dict], optim: OptimConfig, *, on_host: bool) -> torch.optim.Optimizer:
        if ranks.rank in failing:
            raise RuntimeError("no nvcc here\nand more")
        return Fused(groups)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepspeed_engine, "_build_adam", build)
        config = ZeroConfig(stage=2, adam=adam)  # type: ignore[arg-type]
        try:
            on_gpu = replace(ranks, device=torch.device("cuda"))
            return type(deepspeed_engine.zero_optimizer(toy(), OPTIM, config, ranks=on_gpu)).__name__
        except ValueError as error:
            return str(error)


@pytest.mark.parametrize(
    ("adam", "failing", "expected"),
    [
        ("auto", (), "Fused"),
        ("auto", (1,), "AdamW"),
        ("auto", (0, 1), "AdamW"),
        ("torch", (), "AdamW"),
        ("deepspeed", (), "Fused"),
        ("deepspeed", (1,), "adam=deepspeed cannot be built here (RuntimeError: no nvcc here); use auto or torch"),
    ],
)
def test_one_rank_that_cannot_build_it_decides_for_all(adam: str, failing: tuple[int, ...], expected: str) -> None:
    first, second = run_on_ranks(choose, 2, adam, failing)
    assert first == second and first.endswith(expected)


def test_a_machine_without_a_compiler_trains_with_torchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The library's own failure, not one that is injected."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))  # nothing that was built before
    on_gpu = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cuda"))
    with caplog.at_level(logging.INFO):
        found = deepspeed_engine.zero_optimizer(toy(), OPTIM, ZeroConfig(stage=2), ranks=on_gpu)
    assert type(found) is torch.optim.AdamW
    assert "parallel.zero.adam=auto: torch's, since DeepSpeed's cannot be built here (" in caplog.text
    with pytest.raises(
        ValueError, match=r"parallel\.zero\.adam=deepspeed cannot be built here \(.+\); use auto or torch"
    ):
        deepspeed_engine.zero_optimizer(toy(), OPTIM, ZeroConfig(stage=2, adam="deepspeed"), ranks=on_gpu)
