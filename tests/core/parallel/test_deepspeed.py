"""What is DeepSpeed's own: its section, what it cannot do, what it deals out, how it starts, and that it is silent."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from core.distributed import Ranks
from core.optim.optim import OptimConfig
from core.optim.parameters import ThawConfig
from core.parallel.deepspeed.zero import ZeroConfig
from core.parallel.engine import build_engine
from core.parallel.settings import ParallelConfig
from core.unpickling import check_torch_file
from tests.core.parallel.toy import (
    CUT,
    MAX_NORM,
    SGD,
    STRATEGIES,
    History,
    assert_close,
    built,
    history,
    numbers,
    reference,
    toy,
    update,
)
from tests.ranks import run_on_ranks

ROOT = Path(__file__).parents[3]
ADAMW = OptimConfig(name="adamw", lr=0.01, weight_decay=0.1, max_norm=MAX_NORM)
ALONE = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))


def zero(strategy: str, **keys: object) -> ZeroConfig:
    return replace(STRATEGIES[strategy].zero, **keys)


@pytest.mark.parametrize(
    "stage, keys",
    [
        (1, {"offload_optimizer": True}),
        (2, {"offload_optimizer": True, "overlap_comm": True}),
        (3, {"offload_optimizer": True, "overlap_comm": False}),
        (1, {"reduce_bucket_size": 10, "allgather_bucket_size": 16}),
        (2, {"reduce_bucket_size": 10, "overlap_comm": True, "wall_clock_breakdown": True}),
        (3, {"reduce_bucket_size": 10, "prefetch_bucket_size": 7, "param_persistence_threshold": 20}),
    ],
    ids=str,
)
def test_no_key_changes_the_updates(stage: int, keys: dict) -> None:
    strategy = f"deepspeed {stage}"
    for found in run_on_ranks(lambda ranks: history(ranks, strategy, CUT, zero=zero(strategy, **keys)), 2):
        assert_close(found, reference())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_may_travel_in_bf16(stage: int) -> None:
    strategy = f"deepspeed {stage}"
    for found in run_on_ranks(
        lambda ranks: history(ranks, strategy, CUT, zero=zero(strategy, communication="bf16")), 2
    ):
        assert_close(found, reference(), rel=0.01)
        assert found.norms != reference().norms


def test_stages_deal_out_what_they_say() -> None:
    """Of the elements of parameters and of Adam's two states, the share that a rank of two holds between steps."""

    def held(ranks: Ranks, strategy: str) -> tuple[float, float]:
        model = toy()
        total = sum(p.numel() for p in model.parameters())
        engine = built(ranks, strategy, ADAMW, model=model)
        update(engine, ranks, CUT, 0)
        base = getattr(engine.model.optimizer, "optimizer", engine.model.optimizer)
        states = sum(v.numel() for state in base.state.values() for v in state.values() if v.numel() > 1)
        return sum(p.numel() for p in model.parameters()) / total, states / (2 * total)

    def each(ranks: Ranks) -> list[tuple[float, float]]:
        return [held(ranks, f"deepspeed {stage}") for stage in range(4)]

    for whole, first, second, third in run_on_ranks(each, 2):
        assert whole == (1, 1)
        for parameters, states in (first, second):
            assert parameters == 1 and 0.4 < states < 0.6
        assert third[0] == 0 and 0.4 < third[1] < 0.6


def test_what_deepspeed_cannot_do_is_refused() -> None:
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

    def attempt(match: str, model: nn.Module | None = None, optim: OptimConfig = SGD, **keys: object) -> None:
        config = replace(STRATEGIES["deepspeed 2"], **keys)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=match):
            build_engine(model or toy(), config, optim=optim, ranks=ALONE)

    attempt(r"parallel\.compile=true is not possible", compile=True)
    attempt(r"scale has no dimensions, .* shape \(1,\)", model=Scalar())
    late = replace(SGD, thaw=ThawConfig(patterns=["first"], after_steps=1))
    attempt(r"optim\.thaw is not possible with parallel\.zero\.stage=2", optim=late)
    with pytest.raises(ValueError, match=r"parallel\.tp_size=2 must be 1"):
        build_engine(toy(), STRATEGIES["deepspeed 0"], optim=SGD, ranks=replace(ALONE, tp_size=2))

    def other_norm(ranks: Ranks) -> None:
        engine = built(ranks, "deepspeed 1")
        with pytest.raises(ValueError, match=rf"max_norm=1\.0 must stay {MAX_NORM}"):
            engine.step(max_norm=1.0, lr=0.1)

    run_on_ranks(other_norm, 1)


def test_keys_of_another_stage_are_refused() -> None:
    for stage, keys, match in (
        (0, {"offload_optimizer": True}, "offload_optimizer=True needs stage 1 or 2 or 3"),
        (0, {"overlap_comm": False}, "overlap_comm=False"),
        (3, {"allgather_bucket_size": 5}, "allgather_bucket_size=5 needs stage 1 or 2"),
        (2, {"param_persistence_threshold": 0}, "param_persistence_threshold=0 needs stage 3"),
        (0, {"adam": "deepspeed"}, "adam=deepspeed needs stage 1, 2 or 3"),
    ):
        with pytest.raises(ValueError, match=match):
            ZeroConfig(stage=stage, **keys)  # type: ignore[arg-type]


def test_a_kernel_that_cannot_be_built_is_an_error_or_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setenv("PATH", "/no/such/directory")

    def train(ranks: Ranks) -> str:
        with pytest.raises(ValueError, match="use auto or torch") as caught:
            built(ranks, "deepspeed 1", ADAMW, zero=zero("deepspeed 1", adam="deepspeed"))
        return str(caught.value)

    for message in run_on_ranks(train, 2):
        assert "parallel.zero.adam=deepspeed cannot be built here" in message


def test_what_thaws_later_at_stage_0() -> None:
    """The first layer begins to learn after two updates, as with ddp."""
    optim = replace(ADAMW, thaw=ThawConfig(patterns=["first"], after_steps=2))

    def train(ranks: Ranks, strategy: str) -> History:
        engine = built(ranks, strategy, optim)
        before = numbers(engine.model)["first.weight"]
        pairs = []
        for step in range(4):
            pairs.append(update(engine, ranks, CUT, step, lr=0.01))
            is_same = torch.equal(before, numbers(engine.model)["first.weight"])
            assert is_same == (step < 2)
        return History([loss for loss, _ in pairs], [norm for _, norm in pairs], numbers(engine.model))

    def both(ranks: Ranks) -> tuple[History, History]:
        return train(ranks, "deepspeed 0"), train(ranks, "ddp")

    for found, expected in run_on_ranks(both, 2):
        assert_close(found, expected)


def test_of_what_deepspeed_itself_saves_the_weights_may_be_opened(tmp_path: Path) -> None:
    """Our checkpoints have another form; these are the predecessor's."""

    def save(ranks: Ranks) -> None:
        engine = built(ranks, "deepspeed 1")
        update(engine, ranks, ([range(0, 12)],), 0)
        engine.model.save_checkpoint(tmp_path, tag="iter_1", client_state={"step": 1})

    run_on_ranks(save, 1)
    check_torch_file(tmp_path / "iter_1" / "mp_rank_00_model_states.pt")
    with pytest.raises(ValueError, match=r"refused: deepspeed\.runtime\.fp16\.loss_scaler\.LossScaler"):
        check_torch_file(tmp_path / "iter_1" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


def test_settings_of_other_strategies_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        build_engine(toy(), ParallelConfig(zero=ZeroConfig(stage=2)), optim=SGD, ranks=ALONE)
    assert "parallel.zero is left aside: it counts for strategy deepspeed, not ddp" in caplog.text


def test_ranks_that_srun_started_need_no_variables_of_torchrun() -> None:
    def train(ranks: Ranks) -> float:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        return update(built(ranks, "deepspeed 2"), ranks, CUT, 0)[0]

    assert run_on_ranks(train, 2) == pytest.approx([reference().losses[0]] * 2, rel=1e-5)


PROGRAM = """
import sys
import torch
from core.distributed import joined
from core.optim.optim import OptimConfig
from core.parallel.engine import build_engine
from core.parallel.settings import ParallelConfig
from core.parallel.deepspeed.zero import ZeroConfig

with joined(device="cpu") as ranks:
    build_engine(torch.nn.Linear(3, 3), ParallelConfig(), optim=OptimConfig(lr=0.1), ranks=ranks)
    assert "deepspeed" not in sys.modules
    config = ParallelConfig(strategy="deepspeed", precision="bf16", zero=ZeroConfig(stage=3))
    engine = build_engine(torch.nn.Linear(3, 3), config, optim=OptimConfig(lr=0.1), ranks=ranks)
    for _ in range(2):
        with engine.accumulate(last=True):
            engine.backward(engine.model(torch.ones(2, 3)).square().sum())
        assert engine.step(max_norm=None, lr=0.1) > 0
"""


def test_alone_in_a_path_with_a_space_it_says_and_compiles_nothing(tmp_path: Path) -> None:
    """Without any launcher; and who does not ask for DeepSpeed does not import it."""
    home = tmp_path / "a home"
    home.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    env = {**kept, "HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=home, env=env, capture_output=True, text=True, timeout=300
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not [path for path in home.rglob("*") if path.suffix in (".so", ".ninja", ".o")]
