"""`precision: auto` is one thing on all ranks: what the GPUs of all of them compute in."""

from dataclasses import replace

import pytest
import torch

from core.distributed import Ranks
from core.parallel.preparation import COMPUTE_DTYPE
from core.parallel.settings import resolve_precision
from tests.core.parallel.toy import SGD, built, toy
from tests.ranks import run_on_ranks


@pytest.mark.parametrize(("has_bf16", "expected"), [((True, True), "bf16"), ((True, False), "fp16")])
def test_the_oldest_gpu_decides(has_bf16: tuple[bool, bool], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(ranks: Ranks) -> str:
        def answer(including_emulation: bool = True) -> bool:
            return including_emulation or has_bf16[ranks.rank]  # an emulated bf16 is none

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", answer)
        return resolve_precision("auto", replace(ranks, device=torch.device("cuda")))

    assert run_on_ranks(resolve, 2) == [expected] * 2


def test_a_cpu_computes_in_fp32_and_what_is_said_stays() -> None:
    def resolve(ranks: Ranks) -> list[str]:
        return [resolve_precision(precision, ranks) for precision in ("auto", "fp32", "bf16", "fp16")]  # type: ignore[arg-type]

    assert run_on_ranks(resolve, 1) == [["fp32", "fp32", "bf16", "fp16"]]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed 2"])
def test_engines_take_auto(strategy: str) -> None:
    def output(ranks: Ranks) -> list[torch.Tensor]:
        x = torch.linspace(-1, 1, 10).view(2, 5)
        found = [built(ranks, strategy, SGD, precision=precision).model(x).detach() for precision in ("auto", "bf16")]
        return [*found, toy()(x).detach()]

    for auto, bf16, exact in run_on_ranks(output, 2):
        assert torch.equal(auto, exact) and not torch.equal(bf16.float(), exact)
    assert "auto" not in COMPUTE_DTYPE
