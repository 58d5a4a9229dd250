"""The time to the end on a synthetic trace, beside CSRef's estimator, which forgets a third of it."""

from collections import deque
from statistics import fmean, median

import numpy as np
import pytest

from core.timing.eta import Eta

VALIDATE_EVERY, SAVE_EVERY = 50, 100


def trace(seed: int, *, num_steps: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds of each step, of the validation and of the checkpoint after it."""
    rng = np.random.default_rng(seed)
    steps_s = rng.lognormal(mean=np.log(0.5), sigma=0.3, size=num_steps)
    number = np.arange(1, num_steps + 1)
    validations_s = np.where(number % VALIDATE_EVERY == 0, rng.normal(12.0, 1.0, num_steps), 0.0)
    checkpoints_s = np.where(number % SAVE_EVERY == 0, rng.normal(6.0, 0.5, num_steps), 0.0)
    return steps_s, validations_s, checkpoints_s


@pytest.mark.parametrize("seed", range(5))
def test_a_lognormal_trace_is_foretold_within_5_percent(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    steps_s, validations_s, checkpoints_s = trace(seed)
    spent = steps_s + validations_s + checkpoints_s
    total = len(spent)
    eta = Eta(total_steps=total, validate_every=VALIDATE_EVERY, save_every=SAVE_EVERY, min_samples=10)
    latest: deque[float] = deque(maxlen=100)  # CSRef: steps left x the mean of the last 100 iterations
    ours, theirs = [], []
    for place in range(total - 1):
        eta.add_step(steps_s[place])
        latest.append(steps_s[place])
        if validations_s[place]:
            eta.add_validation(validations_s[place])
        if checkpoints_s[place]:
            eta.add_checkpoint(checkpoints_s[place])
        if place + 1 >= total // 10:
            truth = spent[place + 1 :].sum()
            remaining = eta.remaining_s(place + 1)
            assert remaining is not None
            ours.append(abs(remaining / truth - 1))
            theirs.append(abs((total - place - 1) * fmean(latest) / truth - 1))
    with capsys.disabled():
        print(f"\nETA error, median after 10 %: ours {median(ours):.1%}, CSRef's estimator {median(theirs):.1%}")
    assert median(ours) <= 0.05
    assert median(theirs) > 0.25


def test_nothing_is_told_of_too_few_steps() -> None:
    eta = Eta(total_steps=100, min_samples=3)
    for number in range(4):
        assert eta.remaining_s(number) is None
        eta.add_step(1.0)
    assert (eta.num_samples, eta.remaining_s(4)) == (3, 96.0), "the first step is not a sample"


def test_the_slowest_rank_sets_the_time() -> None:
    eta = Eta(total_steps=100, validate_every=50)
    for _ in range(3):
        eta.add_step(1.0)
    eta.add_validation(10.0)
    assert eta.remaining_s(20) == 80.0 + 20.0
    assert eta.remaining_s(20, step_s=3.0) == 240.0 + 20.0
