"""Pairs over 2 and 4 ranks of unequal sizes: losses, gradients and retrieval are those of one process.

One start of processes for each number of ranks serves all tests of this file.
"""

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from core.distributed import Ranks
from core.losses.contrastive import Kind, PairEmbeddings, contrastive_loss
from core.losses.grad_cache import grad_cache_loss
from core.optim.optim import OptimConfig
from core.parallel.engine import build_engine
from core.parallel.settings import ParallelConfig
from recipes.csa_stage1.retrieval import find_places, gallery_loss, gather_in_order, place_scores
from tests.closeness import assert_close
from tests.core.losses.pairs import examples, gradients, largest_difference, reference, two_sides
from tests.core.parallel.training import whole
from tests.ranks import run_on_ranks

KEYS = [1, 2, 3, 2, 5, 6, 3, 8]  # of texts: one occurs twice on different ranks, one on the same
SIZES = {2: [5, 3], 4: [3, 0, 4, 1]}
EQUAL = {2: [4, 4], 4: [2, 2, 2, 2]}
NUM_PAIRS = 8


@dataclass(frozen=True)
class Case:
    """One loss on one distribution of the pairs."""

    kind: Kind
    dtype: torch.dtype = torch.float64
    equal: bool = False
    chunk_rows: int | None = None
    is_gathered: bool = True  # False: the predecessor's loss of each micro-batch alone
    unmasked: bool = False
    log_scale: float = 1.25

    def rows(self, rank: int, world_size: int) -> slice:
        sizes = (EQUAL if self.equal else SIZES)[world_size]
        return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


CASES = {
    "infonce": Case("infonce"),
    "infonce, equal": Case("infonce", equal=True),
    "infonce, no keys": Case("infonce", unmasked=True),
    "infonce, fp32": Case("infonce", dtype=torch.float32),
    "infonce, scale above 100": Case("infonce", log_scale=math.log(100) + 0.3),
    "siglip": Case("siglip"),
    "siglip, equal": Case("siglip", equal=True),
    "siglip, no keys": Case("siglip", unmasked=True),
    "siglip, fp32": Case("siglip", dtype=torch.float32),
    "infonce, chunks of 1": Case("infonce", chunk_rows=1),
    "infonce, chunks of 2": Case("infonce", chunk_rows=2),
    "siglip, chunks of 2": Case("siglip", chunk_rows=2),
    "local": Case("local"),
    "micro-batch": Case("infonce", is_gathered=False),
}

Found = tuple[float, dict[str, Tensor], dict[str, tuple[float, float]]]


def on_a_rank(ranks: Ranks, case: Case) -> Found:
    """Loss, gradients and metrics as the loop and an averaging engine make them of all ranks."""
    assert ranks.mesh is not None
    group = ranks.mesh.get_group("dp")
    mine = case.rows(ranks.rank, ranks.world_size)
    num_targets = mine.stop - mine.start
    rows = mine if num_targets else slice(0, 1)  # the dummy of a rank without pairs
    speech, text = (side[rows] for side in examples(NUM_PAIRS, dtype=case.dtype))
    model = two_sides(case.kind, dtype=case.dtype)
    with torch.no_grad():
        model.log_scale.fill_(case.log_scale)
    loss = partial(
        contrastive_loss,
        text_keys=None if case.unmasked else torch.tensor(KEYS)[rows],
        num_targets=num_targets,
        group=group if case.is_gathered else None,
        kind=case.kind,
    )

    def encode(chunk: slice) -> PairEmbeddings:
        return model(speech[chunk], text[chunk])

    if case.chunk_rows is None:
        parts = [lambda: loss(encode(slice(None)))]
    else:
        parts = grad_cache_loss(encode, loss, num_rows=len(speech), chunk_rows=case.chunk_rows, group=group)
    outputs = []
    for part in parts:
        outputs.append(part())
        (outputs[-1].loss_sum * ranks.dp_size / NUM_PAIRS).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= ranks.dp_size
    total = ranks.total([sum(float(output.loss_sum.detach()) for output in outputs)])[0]
    sums = {k: tuple(ranks.total([float(x) for x in v])) for k, v in outputs[0].metrics.items()}
    return total / NUM_PAIRS, gradients(model), sums  # type: ignore[return-value]


def in_one_process(case: Case) -> tuple[float, dict[str, Tensor]]:
    """The formula over all pairs, by autograd."""
    speech, text = examples(NUM_PAIRS, dtype=case.dtype)
    model = two_sides(case.kind, dtype=case.dtype)
    with torch.no_grad():
        model.log_scale.fill_(case.log_scale)
    keys = list(range(NUM_PAIRS)) if case.unmasked else KEYS
    penalty = (model.log_scale - math.log(100)).clamp(min=0).square().sum() / 2
    loss = reference(model(speech, text), keys, case.kind) / NUM_PAIRS + penalty
    loss.backward()
    return float(loss.detach()), gradients(model)


def retrieve(ranks: Ranks) -> dict[str, float]:
    """Scores of a gallery whose rows are dealt among ranks, one of them without any."""
    speech, text, keys = gallery()
    mine = (
        np.arange(len(speech))[ranks.rank :: max(1, ranks.world_size - 1)] if ranks.rank < ranks.world_size - 1 else []
    )
    positions = np.array(mine, dtype=np.int64)
    both = np.stack([speech, text], axis=1)[positions]
    rows = gather_in_order(ranks, positions, both, num_rows=len(speech))
    places = find_places(rows[:, 0], rows[:, 1], keys=keys)
    return {**place_scores(places), "loss": gallery_loss(rows[:, 0], rows[:, 1], scale=9.0, keys=keys)}


def gallery() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    text = rng.standard_normal((60, 12))
    speech = text + 1.2 * rng.standard_normal((60, 12))
    keys = np.arange(60)
    keys[40:44] = keys[:4]
    text[40:44] = text[:4]
    unit = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (speech, text)]
    return unit[0], unit[1], keys


class Blocks(nn.Module):
    """Two sides with blocks, for engines that shard them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        self.of_text, self.log_scale = nn.Linear(5, 6), nn.Parameter(torch.tensor([1.0]))

    def forward(self, speech: Tensor, text: Tensor) -> PairEmbeddings:
        for layer in self.layers:
            speech = layer(speech)
        return PairEmbeddings(F.normalize(speech), F.normalize(self.of_text(text)), self.log_scale.clone())

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)


def trained(ranks: Ranks, strategy: str, chunk_rows: int | None) -> dict[str, Tensor]:
    """Weights after three updates by SGD with clipping through an engine."""
    torch.manual_seed(1)
    config = ParallelConfig(strategy=strategy)  # type: ignore[arg-type]
    engine = build_engine(Blocks(), config, optim=OptimConfig(name="sgd", lr=0.3, max_norm=0.05), ranks=ranks)
    group = None if ranks.mesh is None else ranks.mesh.get_group("dp")
    rows = Case("infonce").rows(ranks.rank, ranks.world_size) if ranks.world_size > 1 else slice(0, NUM_PAIRS)
    speech, text = (side[rows] for side in examples(NUM_PAIRS, dtype=torch.float32))
    keys = torch.tensor(KEYS)[rows]
    loss = partial(contrastive_loss, text_keys=keys, num_targets=len(keys), group=group)

    def encode(chunk: slice) -> PairEmbeddings:
        return engine.model(speech[chunk], text[chunk])

    for _ in range(3):
        if chunk_rows is None:
            parts: Any = [lambda: loss(encode(slice(None)))]
        else:
            parts = grad_cache_loss(encode, loss, num_rows=len(keys), chunk_rows=chunk_rows, group=group)
        for number, part in enumerate(parts):
            with engine.accumulate(last=number == len(parts) - 1):
                engine.backward(part().loss_sum * ranks.dp_size / NUM_PAIRS)
        engine.step(max_norm=0.05, lr=0.3)
    return {name.removeprefix("module."): whole(value) for name, value in engine.model.state_dict().items()}


ENGINES = [("ddp", None), ("ddp", 2), ("fsdp2", None), ("fsdp2", 2)]


def everything(ranks: Ranks) -> dict[str, Any]:
    found: dict[str, Any] = {name: on_a_rank(ranks, case) for name, case in CASES.items()}
    found["retrieval"] = retrieve(ranks)
    if ranks.world_size == 2:
        found["engines"] = {engine: trained(ranks, *engine) for engine in ENGINES}
    return found


@cache
def results(world_size: int) -> list[dict[str, Any]]:
    return run_on_ranks(everything, world_size)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.is_gathered and case.kind != "local"])
def test_loss_and_gradients_are_those_of_one_process(name: str, world_size: int) -> None:
    case = CASES[name]
    tolerance = 1e-10 if case.dtype == torch.float64 else 1e-6
    expected, expected_gradients = in_one_process(case)
    for rank in results(world_size):
        loss, found, sums = rank[name]
        assert loss == pytest.approx(expected, rel=tolerance)
        assert largest_difference(found, expected_gradients) < tolerance
        assert [bottom for _, bottom in sums.values()] == [NUM_PAIRS] * 3


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", ["infonce", "siglip"])
def test_accuracies_are_those_of_one_process(name: str, world_size: int) -> None:
    case = CASES[name]
    output = two_sides(case.kind)(*examples(NUM_PAIRS))
    alone = contrastive_loss(output, text_keys=torch.tensor(KEYS), num_targets=NUM_PAIRS, group=None, kind=case.kind)
    expected = {k: (float(top), float(bottom)) for k, (top, bottom) in alone.metrics.items()}
    assert 0 < expected["speech_to_text_accuracy"][0] < NUM_PAIRS
    for rank in results(world_size):
        assert rank[name][2].keys() == expected.keys()
        for metric, counted in expected.items():
            assert rank[name][2][metric] == pytest.approx(counted)


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_loss_of_each_micro_batch_alone_is_another(world_size: int) -> None:
    """The predecessor's: the negative control of the tests above."""
    expected, expected_gradients = in_one_process(CASES["infonce"])
    loss, found, _ = results(world_size)[0]["micro-batch"]
    assert abs(loss - expected) > 0.3
    assert largest_difference(found, expected_gradients) > 0.1


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_local_loss_has_the_value_and_takes_other_ranks_as_constants(world_size: int) -> None:
    expected, expected_gradients = in_one_process(CASES["infonce"])
    loss, found, _ = results(world_size)[0]["local"]
    assert loss == pytest.approx(expected, rel=1e-10)
    assert largest_difference(found, expected_gradients) > 0.05
    model, (speech, text) = two_sides("infonce"), examples(NUM_PAIRS)
    alive = model(speech, text)
    logits = alive.log_scale.exp() * alive.speech @ alive.text.t()
    of_text_constant = alive.log_scale.exp() * alive.speech @ alive.text.detach().t()
    of_speech_constant = alive.log_scale.exp() * alive.speech.detach() @ alive.text.t()
    total = torch.zeros((), dtype=torch.float64)
    for rank in range(world_size):
        rows = CASES["local"].rows(rank, world_size)
        mine = range(rows.start, rows.stop)
        for i in mine:
            counted = [j for j in range(NUM_PAIRS) if j == i or KEYS[j] != KEYS[i]]
            row = torch.stack([logits[i, j] if j in mine else of_text_constant[i, j] for j in counted])
            column = torch.stack([logits[j, i] if j in mine else of_speech_constant[j, i] for j in counted])
            total = total + (row.logsumexp(0) + column.logsumexp(0)) / 2 - logits[i, i]
    (total / NUM_PAIRS).backward()
    assert largest_difference(found, gradients(model)) < 1e-10


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_an_engine_of_two_ranks_trains_as_one_process(engine: tuple[str, int | None]) -> None:
    expected = trained(Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu")), "ddp", None)
    torch.manual_seed(1)
    begin = Blocks().state_dict()
    for rank in results(2):
        found = rank["engines"][engine]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value, rel=2e-6, name=name)
            assert not torch.equal(value, begin[name])


@pytest.mark.parametrize("world_size", [2, 4])
def test_retrieval_is_the_same_on_any_number_of_ranks(world_size: int) -> None:
    alone = retrieve(Ranks(0, 0, 2, 0, 1, 0, 1, torch.device("cpu")))  # a process alone that reads all rows
    assert 0.2 < alone["r1"] < 0.9
    for rank in results(world_size):
        assert rank["retrieval"] == alone
