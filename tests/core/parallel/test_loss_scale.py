"""The scale of fp16 losses goes DeepSpeed's way, on the device, and is the same whoever makes the update."""

from dataclasses import replace
from itertools import chain, repeat

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from core.distributed import Ranks
from core.parallel import engine as engine_module
from core.parallel.gradients import LossScale, LossScaleConfig
from core.parallel.settings import ParallelConfig
from tests.core.parallel.toy import CUT, STRATEGIES, assert_close, built, history, reference, update
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")


def test_the_scale_goes_where_deepspeeds_goes() -> None:
    """Against DynamicLossScaler, over 3,000 updates that are bad at random, in rows, and seldom."""
    torch.manual_seed(0)
    bad = chain(torch.rand(1000) < 0.3, repeat(True, 60), torch.rand(2000) < 0.02)
    for hysteresis in (1, 2, 3):
        config = LossScaleConfig(initial_power=8, window=20, hysteresis=hysteresis, minimum=0.5)
        ours = LossScale(config, CPU)
        theirs = DynamicLossScaler(2.0**8, 20, 0.5, hysteresis, False, raise_error_at_min_scale=False)
        for step, is_bad in enumerate(bad):
            ours.update(torch.tensor(float(is_bad)))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("deepspeed.comm.get_rank", lambda: 1)  # it would log on rank 0
                theirs.update_scale(bool(is_bad))
            assert float(ours.scale) == theirs.cur_scale, step
            if step % 7 == 0:  # a link ends
                state = ours.state()
                ours = LossScale(config, CPU)
                ours.restore(state)


def test_gradients_are_unscaled() -> None:
    scale = LossScale(LossScaleConfig(initial_power=4), CPU)
    gradient = torch.tensor([16.0, 48.0])
    scale.unscale([gradient])
    assert gradient.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_fp16_scales_skips_and_goes_on(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU computes in fp16 slowly, but it does: enough to see that scaled updates are the unscaled ones."""
    monkeypatch.setattr(engine_module, "check_precision", lambda config, ranks: None)
    too_large = LossScaleConfig(initial_power=16, hysteresis=2, window=3)

    def train(ranks: Ranks) -> tuple:
        found = history(ranks, strategy, CUT, precision="fp16", loss_scale=LossScaleConfig(initial_power=8))
        engine = built(ranks, strategy, precision="fp16", loss_scale=too_large)
        scales, norms = [], []
        for step in range(12):
            norms.append(update(engine, ranks, CUT, step)[1])
            scales.append(engine.state()["loss_scale"])
        again = built(ranks, strategy, precision="fp16", loss_scale=too_large)
        again.restore(engine.state())
        return found, norms, scales, again.state() == engine.state()

    for found, norms, scales, is_restored in run_on_ranks(train, 2):
        assert_close(found, reference(), rel=0.01)
        assert all(value.dtype == torch.float32 for value in found.parameters.values())
        skipped = [not torch.isfinite(torch.tensor(norm)) for norm in norms]
        assert skipped[:3] == [True] * 3 and not all(skipped)
        assert scales[0] == 2.0**16 and scales[1] == 2.0**15  # the first is put up with
        first_good = skipped.index(False)
        assert scales[first_good : first_good + 4] == [scales[first_good]] * 3 + [2 * scales[first_good]]
        assert is_restored


def test_the_section_is_read_for_all_strategies() -> None:
    config = ParallelConfig(precision="fp16")
    assert config.loss_scale == LossScaleConfig(initial_power=16, window=1000, hysteresis=2, minimum=1.0)
    assert replace(config, strategy="deepspeed").loss_scale == config.loss_scale
