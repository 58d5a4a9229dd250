"""In bf16 every strategy computes alike: what lies outside of the blocks is as exact with FSDP2 as with DDP."""

import math
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from core.distributed import Ranks
from core.losses.contrastive import contrastive_loss
from core.models.csa import CsaConfig, CsaModel, HubertSpeechConfig
from core.models.hubert.config import HubertConfig
from core.models.text_encoder import OwnTextConfig
from core.optim.optim import OptimConfig
from core.parallel.engine import build_engine
from tests.core.parallel.toy import STRATEGIES, numbers
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.numerics

STEPS, PAIRS = 6, 4  # pairs a rank
OPTIM = OptimConfig(name="adamw", lr=1e-2, weight_decay=0.1, max_norm=1.0)
CONFIG = CsaConfig(
    speech=HubertSpeechConfig(
        hubert=HubertConfig(
            conv_layers=[[8, 10, 5], [8, 8, 8], [16, 8, 8]], dim=16, num_layers=2, num_heads=2, ffn_dim=32,
            position_kernel=8, position_groups=2, layer_drop=0.0, dropout=0.0, attention_dropout=0.0,
            projection_dropout=0.0,
        )
    ),
    text=OwnTextConfig(dim=16, num_layers=1, num_heads=2, ffn_dim=32, dropout=0.0),
    projection_dim=8,
)  # fmt: skip


class Found(NamedTuple):
    log_scale: Tensor
    logits: Tensor
    losses: list[float]
    parameters: dict[str, Tensor]


def pairs(ranks: Ranks) -> dict[str, Tensor]:
    torch.manual_seed(7 + ranks.rank)
    audio = torch.randn(PAIRS, 6400) + 3.0  # whose mean needs more digits than bf16 has
    num_tokens = torch.tensor([5, 7, 6, 4])
    tokens = torch.randint(1, 20, (PAIRS, 7))
    return {"audio": audio, "num_samples": torch.full((PAIRS,), 6400), "token_ids": tokens, "num_tokens": num_tokens}


def train(ranks: Ranks, strategy: str, precision: str) -> Found:
    from dataclasses import replace

    torch.manual_seed(0)
    model = CsaModel(CONFIG, vocab_size=20)
    engine = build_engine(
        model,
        replace(STRATEGIES[strategy], precision=precision),
        optim=OPTIM,
        ranks=ranks,  # type: ignore[arg-type]
    )
    assert ranks.mesh is not None
    group, batch, losses, first = ranks.mesh.get_group("dp"), pairs(ranks), [], None
    for step in range(STEPS):
        engine.begin_step(step)
        with engine.accumulate(last=True):
            output = engine.model(**batch)
            loss = contrastive_loss(output, text_keys=None, num_targets=PAIRS, group=group).loss_sum
            engine.backward(loss * (ranks.dp_size / (ranks.dp_size * PAIRS)))
        losses.append(ranks.total([loss.item()])[0] / (ranks.dp_size * PAIRS))
        if first is None:
            logits = output.log_scale.exp() * (output.speech @ output.text.T)
            first = [one.detach().clone() for one in (output.log_scale, logits)]
        engine.step(max_norm=OPTIM.max_norm, lr=OPTIM.lr)
    assert first is not None
    return Found(*first, losses, numbers(engine.model))


@cache
def results(precision: str) -> dict[str, list[Found]]:
    return {name: run_on_ranks(train, 2, name, precision) for name in ("ddp", "fsdp2", "deepspeed 0")}


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed 0"])
def test_scalars_and_logits_in_bf16_are_those_of_ddp(strategy: str) -> None:
    found, expected = results("bf16"), results("fp32")["ddp"]
    for here, there, exact in zip(found[strategy], found["ddp"], expected, strict=True):
        assert torch.equal(here.log_scale, torch.tensor([math.log(1 / 0.07)])), "to the last digit of fp32"
        assert torch.equal(here.log_scale, there.log_scale)
        assert here.logits.dtype == torch.float32
        assert (there.logits - exact.logits).abs().max() > 1e-3, "it is bf16"
        assert (here.logits - there.logits).abs().max() < 0.05


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed 0"])
def test_losses_in_bf16_are_close_to_those_of_ddp(strategy: str) -> None:
    found = results("bf16")
    assert found["ddp"][0].losses[-1] < found["ddp"][0].losses[0] - 0.1, "it learns"
    assert found[strategy][0].losses == pytest.approx(found["ddp"][0].losses, rel=0.01)
    assert all(value.dtype == torch.float32 for value in found[strategy][0].parameters.values())
