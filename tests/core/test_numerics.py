"""The self-check finds kernels that are wrong, wherever they run, and no others."""

import time

import pytest
import torch
from torch import Tensor, nn

from core import numerics
from core.distributed import Ranks
from core.job.errors import exit_code_of
from core.numerics import Kernel, all_kernels, faults, kernels_of
from core.rundir.exit_codes import ExitCode
from tests.core.parallel.toy import SGD, built
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.numerics

BOTH = [torch.float32, torch.bfloat16]


class SlightlyOff(torch.autograd.Function):
    """x, whose gradient is off by a tenth."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * 1.1


def wrong_in(dtype: torch.dtype, *, only_gradient: bool = False) -> Kernel:
    def compute(x: Tensor) -> Tensor:
        if x.dtype != dtype:
            return 1.0 * x
        return SlightlyOff.apply(x) if only_gradient else 1.1 * x

    return Kernel("x", compute, [(4, 5)])


def test_the_kernels_of_the_recipes_are_right_here() -> None:
    """But for the one that is known to be wrong in bf16 on CPUs with AMX."""
    state = torch.get_rng_state()
    began = time.process_time()
    found = faults(all_kernels(), dtypes=BOTH, device="cpu")
    assert time.process_time() - began < 30, "it is to take seconds"
    unknown = [fault for fault in found if not (fault.precision == "bf16" and "groups=4" in fault.words)]
    assert unknown == []
    assert torch.equal(torch.get_rng_state(), state), "weights of a run must not depend on it"


@pytest.mark.parametrize("only_gradient", [False, True])
@pytest.mark.parametrize(
    ("dtype", "precision", "way_out"),
    [(torch.float32, "fp32", "ONEDNN_MAX_CPU_ISA=AVX2"), (torch.bfloat16, "bf16", "parallel.precision=fp32")],
)
def test_a_wrong_kernel_is_named_with_what_to_set(
    dtype: torch.dtype, precision: str, way_out: str, only_gradient: bool
) -> None:
    (found,) = faults([wrong_in(dtype, only_gradient=only_gradient), *all_kernels()[-1:]], dtypes=BOTH, device="cpu")
    what = "gradient 1" if only_gradient else "result"
    assert found.words.startswith(f"x in {precision} is wrong: its {what} by 0.") and found.precision == precision
    assert way_out in found.advice


def test_what_is_not_a_number_is_wrong() -> None:
    nan = Kernel("x", lambda x: x if x.dtype == torch.float64 else x * float("nan"), [(3,)])
    assert len(faults([nan], dtypes=[torch.float32], device="cpu")) == 1


def test_a_model_is_checked_at_its_own_shapes() -> None:
    convs = [nn.Conv1d(8, 8, 4, groups=2), nn.Conv2d(1, 3, 3, padding="same"), nn.Conv1d(4, 4, 3, padding=90)]
    model = nn.Sequential(*convs, nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False), nn.LayerNorm(3))
    kernels = kernels_of(model.modules())
    assert [kernel.name.split("(")[0] for kernel in kernels] == ["Conv1d", "Conv1d", "Conv2d", "Conv1d", "Linear"]
    assert kernels[0].shapes == [(2, 8, 24), (8, 4, 4), (8,)] and kernels[1].name.endswith("channels last")
    assert faults(kernels, dtypes=BOTH, device="cpu") == []


def test_a_run_in_bf16_refuses_on_all_ranks_where_one_computes_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(ranks: Ranks) -> tuple[str, ExitCode]:
        if ranks.rank == 1:
            monkeypatch.setattr(numerics, "functions", lambda: [wrong_in(torch.bfloat16)])
        built(ranks, "ddp", SGD)  # fp32 is not concerned
        with pytest.raises(ValueError, match=r"parallel\.precision=bf16") as refused:
            built(ranks, "ddp", SGD, precision="bf16")
        return str(refused.value), exit_code_of(refused.value)

    for words, code in run_on_ranks(start, 2):
        assert code == ExitCode.CONFIG
        assert "x in bf16 is wrong" in words and words.count("wrong") == 1
        assert "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16" in words and "parallel.precision=fp32" in words
