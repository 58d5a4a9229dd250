"""Schedules against torch's, transformers', DeepSpeed's and the published tables."""

import math

import pytest
import torch
from pydantic import ValidationError

from core.optim.optim import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    OptimConfig,
    ScheduleConfig,
    TriStage,
    WarmupStableDecay,
    learning_rate,
    ratio,
)


def rates(schedule: ScheduleConfig, num_steps: int) -> list[float]:
    """Rates of the first updates at peak 1."""
    config = OptimConfig(lr=1.0, schedule=schedule)
    return [learning_rate(config, step) for step in range(num_steps)]


def torch_rates(make, num_steps: int, *, first: int = 1) -> list[float]:
    """Rates of a torch-style scheduler over a dummy optimizer, from its counter `first` on: ours counts from 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(num_steps + first):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found[first:]


def test_hubert_table() -> None:
    """fairseq's polynomial decay: the values of updates 1, 32,000, 141,000 and 250,000 at peak 5e-4."""
    config = OptimConfig(lr=5e-4, schedule=Linear(warmup_steps=32_000, total_steps=250_000))
    found = [learning_rate(config, update - 1) for update in (1, 32_000, 141_000, 250_000, 250_001)]
    assert found == pytest.approx([1.5625e-8, 5e-4, 2.5e-4, 0.0, 0.0], rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_linear_cosine_constant_and_wsd_equal_transformers(warmup: int) -> None:
    import transformers.optimization as hf

    total, steps = 40, 50
    pairs = [
        (
            Linear(warmup_steps=warmup, total_steps=total),
            lambda o: hf.get_linear_schedule_with_warmup(o, warmup, total),
        ),
        (Constant(warmup_steps=warmup), lambda o: hf.get_constant_schedule_with_warmup(o, warmup)),
        (
            WarmupStableDecay(warmup_steps=warmup, decay_steps=10, total_steps=total),
            lambda o: hf.get_wsd_schedule(o, warmup, 10, num_training_steps=total, decay_type="linear"),
        ),
    ]
    for schedule, make in pairs:
        assert rates(schedule, steps) == pytest.approx(torch_rates(make, steps), abs=1e-12), schedule
    cosine = Cosine(warmup_steps=warmup, total_steps=total)
    theirs = torch_rates(lambda o: hf.get_cosine_schedule_with_warmup(o, warmup, total), total)
    assert rates(cosine, total) == pytest.approx(theirs, abs=1e-12)  # theirs rises again after the end
    assert rates(cosine, steps)[total:] == [0.0] * (steps - total)


def test_cosine_and_exponential_equal_torch() -> None:
    cosine = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=30, eta_min=0.1), 30)
    assert rates(Cosine(warmup_steps=0, total_steps=30, min_ratio=0.1), 30) == pytest.approx(cosine, abs=1e-9)
    exponential = torch_rates(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.96 ** (1 / 50)), 60)
    found = rates(Exponential(warmup_steps=5, gamma=0.96, decay_steps=50), 65)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5:] == pytest.approx(exponential, rel=1e-9)
    assert found[54] == pytest.approx(0.96)


def test_log_warmup_and_cosine_equal_deepspeed() -> None:
    """DeepSpeed's WarmupCosineLR in its own words: i counts from 0, log(i + 1) / log(W), then the cosine."""

    def deepspeed(i: int, *, warmup: int = 10, total: int = 40, low: float = 1e-4) -> float:
        if i < warmup:
            return math.log(i + 1) / math.log(warmup)
        return low + (1 - low) * (1 + math.cos(math.pi * min(1.0, (i - warmup + 1) / (total - warmup)))) / 2

    schedule = Cosine(warmup_steps=10, total_steps=40, min_ratio=1e-4, warmup="log")
    assert rates(schedule, 45) == pytest.approx([deepspeed(i) for i in range(45)], abs=1e-12)


def test_tri_stage_equals_its_definition() -> None:
    """torchaudio's TriStageLRScheduler: 0.01 -> 1 linearly, hold, exp(log(0.05) * share), then 0.05."""
    schedule = TriStage(warmup_steps=20, hold_steps=80, decay_steps=100)
    expected = []
    for update in range(1, 231):
        if update <= 20:
            expected.append(0.01 + 0.99 * update / 20)
        elif update <= 100:
            expected.append(1.0)
        elif update <= 200:
            expected.append(math.exp(math.log(0.05) * (update - 100) / 100))
        else:
            expected.append(0.05)
    assert rates(schedule, 230) == pytest.approx(expected, rel=1e-12)


def test_a_schedule_is_a_function_of_the_step_alone() -> None:
    schedule = Cosine(warmup_steps=3, total_steps=100)
    assert [ratio(schedule, update) for update in (50, 3, 50)] == [ratio(schedule, 50), 1.0, ratio(schedule, 50)]


def test_contradictions() -> None:
    with pytest.raises(ValidationError, match="warmup_steps=50 must be at most total_steps=40"):
        Linear(warmup_steps=50, total_steps=40)
    with pytest.raises(ValidationError, match="total_steps=40 must be at least"):
        WarmupStableDecay(warmup_steps=30, decay_steps=20, total_steps=40)
