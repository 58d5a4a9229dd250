"""The loss contract, on toy models: the gradient is that of (sum of losses) / (targets), on any number of ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from core.distributed import Ranks
from core.losses.ctc import ctc_loss, is_feasible
from core.losses.output import LossOutput
from core.optim.optim import OptimConfig
from core.parallel.engine import Engine, build_engine
from core.parallel.settings import ParallelConfig
from core.timing.phases import Phases
from core.train.loop import LossFn, train_step
from tests import closeness
from tests.core.parallel.training import whole
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.numerics

SGD = OptimConfig(name="sgd", lr=1.0)  # an update is minus the gradient
PAIRS = 8
SETUPS = [(1, "ddp"), (2, "ddp"), (4, "ddp"), (2, "fsdp2")]

Gradients = dict[str, Tensor]


@dataclass
class Batch:
    rows: dict[str, Tensor]
    num_targets: int
    sample_ids: list[str] = field(default_factory=list)
    length: float = 0.0
    padded_length: float = 0.0
    unit: str = "s"
    bad: list[Any] = field(default_factory=list)

    def to(self, device: torch.device) -> "Batch":
        return self


class Towers(nn.Module):
    """Embeddings of pairs: what is heard and what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.text = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, heard: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.audio(heard)), torch.tanh(self.text(read))

    def blocks(self) -> list[nn.Module]:
        return []


class Frames(nn.Module):
    """Logits of every frame."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def blocks(self) -> list[nn.Module]:
        return []


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def trained(
    ranks: Ranks, strategy: str, kind: type[nn.Module], loss_fn: LossFn, steps: Sequence[list[Batch]]
) -> tuple[Gradients, list[Any]]:
    """What the steps subtracted from the parameters, and what each logged."""
    model = made(kind)
    start = {name: whole(p) for name, p in model.named_parameters()}
    engine: Engine = build_engine(model, ParallelConfig(strategy=strategy), optim=SGD, ranks=ranks)  # type: ignore[arg-type]
    run: Any = SimpleNamespace(ranks=ranks, seed=0, config=SimpleNamespace(optim=SGD), phases=Phases())
    logged = []
    for number, batches in enumerate(steps):
        step: Any = SimpleNamespace(batches=batches)
        targets = ranks.total([sum(batch.num_targets for batch in batches)])[0]
        logged.append(train_step(run, engine, step, loss_fn, number=number, num_targets=targets)[0])
    return {name: start[name] - whole(p) for name, p in model.named_parameters()}, logged


def expected(kind: type[nn.Module], loss: Callable[[nn.Module], Tensor]) -> Gradients:
    model = made(kind)
    loss(model).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: Gradients, reference: Gradients, *, times: float = 1.0) -> None:
    assert found.keys() == reference.keys()
    for name, value in reference.items():
        assert value.abs().max() > 1e-3
        closeness.assert_close(found[name], times * value, rel=5e-6, name=name)


# Contrastive: each rank scores its own rows against everybody's.


class Gather(torch.autograd.Function):
    """All ranks' rows; the gradients that all ranks have for mine are added up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.size = ranks, len(rows)
        parts = [torch.empty_like(rows) for _ in range(ranks.dp_size)]
        dist.all_gather(parts, rows.contiguous(), group=ranks.mesh.get_group("dp"))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.ranks.mesh.get_group("dp"))
        return total[ctx.ranks.dp_rank * ctx.size :][: ctx.size], None


def gathered(rows: Tensor, ranks: Ranks) -> Tensor:
    return rows if ranks.dp_size == 1 else Gather.apply(rows, ranks)


def pairs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(PAIRS, 6), torch.randn(PAIRS, 5)


def scored(audio: Tensor, text: Tensor, all_audio: Tensor, all_text: Tensor, *, first: int) -> Tensor:
    """The sum over the pairs `first`, `first` + 1... of both directions."""
    places = torch.arange(first, first + len(audio))
    there = F.cross_entropy(audio @ all_text.T, places, reduction="sum")
    back = F.cross_entropy(text @ all_audio.T, places, reduction="sum")
    return there + back


def my_pairs(ranks: Ranks) -> Batch:
    heard, read = pairs()
    size = PAIRS // ranks.dp_size
    mine = slice(ranks.dp_rank * size, (ranks.dp_rank + 1) * size)
    return Batch({"heard": heard[mine], "read": read[mine]}, num_targets=size)


def own_rows(ranks: Ranks) -> LossFn:
    def loss_fn(model: nn.Module, batch: Batch) -> LossOutput:
        audio, text = model(**batch.rows)
        first = ranks.dp_rank * len(audio)
        return LossOutput(scored(audio, text, gathered(audio, ranks), gathered(text, ranks), first=first))

    return loss_fn


def everybodys_rows(ranks: Ranks) -> LossFn:
    def loss_fn(model: nn.Module, batch: Batch) -> LossOutput:
        audio, text = (gathered(rows, ranks) for rows in model(**batch.rows))
        return LossOutput(scored(audio, text, audio, text, first=0))

    return loss_fn


def in_parts(ranks: Ranks) -> LossFn:
    """GradCache (Gao et al. 2021): gradients of all embeddings first, then of the parameters chunk by chunk."""

    def loss_fn(model: nn.Module, batch: Batch) -> list[Callable[[], LossOutput]]:
        with torch.no_grad():
            found = model(**batch.rows)
        audio, text = (rows.detach().requires_grad_() for rows in found)
        output = scored(audio, text, gathered(audio, ranks), gathered(text, ranks), first=ranks.dp_rank * len(audio))
        d_audio, d_text = torch.autograd.grad(output, (audio, text))

        def part(rows: slice) -> LossOutput:
            a, t = model(**{name: value[rows] for name, value in batch.rows.items()})
            return LossOutput((a * d_audio[rows]).sum() + (t * d_text[rows]).sum())

        cuts = [slice(0, 1), slice(1, None)]  # uneven
        return [lambda rows=rows: part(rows) for rows in cuts]  # type: ignore[misc]

    return loss_fn


def full_contrastive(model: nn.Module) -> Tensor:
    audio, text = model(*pairs())
    return scored(audio, text, audio, text, first=0) / PAIRS


@pytest.mark.parametrize("world_size, strategy", SETUPS)
def test_contrastive_ranks_return_their_own_rows(world_size: int, strategy: str) -> None:
    def train(ranks: Ranks) -> list[Gradients]:
        kinds = (own_rows, in_parts, everybodys_rows)
        return [trained(ranks, strategy, Towers, kind(ranks), [[my_pairs(ranks)]])[0] for kind in kinds]

    reference = expected(Towers, full_contrastive)
    for own, parts, everybodys in run_on_ranks(train, world_size):
        assert_close(own, reference)
        assert_close(parts, reference)
        assert_close(everybodys, reference, times=world_size)  # the mistake that the contract forbids


# CTC: what cannot be aligned, and ranks without targets.

LENGTHS = [9, 2, 9, 7, 3, 9, 3, 6]
TARGETS = [[1, 2, 3], [1, 2, 3], [2, 2, 1], [3], [1, 1, 2], [2, 3, 2, 1], [2, 2, 2], [1, 3]]  # 1, 4 and 6 do not fit


def spoken(rows: Sequence[int]) -> Batch:
    torch.manual_seed(2)
    x = torch.randn(len(LENGTHS), max(LENGTHS), 6)
    targets = torch.zeros(len(rows), 4, dtype=torch.long)
    for place, row in enumerate(rows):
        targets[place, : len(TARGETS[row])] = torch.tensor(TARGETS[row])
    tensors = {
        "x": x[list(rows)],
        "lengths": torch.tensor([LENGTHS[row] for row in rows]),
        "targets": targets,
        "target_lengths": torch.tensor([len(TARGETS[row]) for row in rows]),
    }
    num_targets = sum(len(TARGETS[row]) for row in rows if is_feasible(LENGTHS[row], TARGETS[row]))
    return Batch(tensors, num_targets, sample_ids=[str(row) for row in rows])


def ctc(model: nn.Module, batch: Batch) -> LossOutput:
    rows = batch.rows
    return ctc_loss(model(rows["x"]), rows["lengths"], rows["targets"], rows["target_lengths"])


def plain_ctc(rows: Sequence[int]) -> Gradients:
    """torch's own CTC, row by row, of rows that all fit."""

    def loss(model: nn.Module) -> Tensor:
        total = torch.zeros(())
        for row in rows:
            log_probs = model(spoken([row]).rows["x"][0, : LENGTHS[row]]).log_softmax(-1)
            ids = torch.tensor(TARGETS[row])
            total = total + F.ctc_loss(
                log_probs, ids, torch.tensor(LENGTHS[row]), torch.tensor(len(ids)), reduction="sum"
            )
        return total / sum(len(TARGETS[row]) for row in rows)

    return expected(Frames, loss)


@pytest.mark.parametrize("world_size, strategy", SETUPS)
def test_what_cannot_be_aligned_counts_nowhere(world_size: int, strategy: str) -> None:
    def train(ranks: Ranks) -> tuple[Gradients, list[Any]]:
        mine = range(ranks.dp_rank, len(LENGTHS), ranks.dp_size)
        batches = [spoken(mine[:1]), spoken(mine[1:])]  # ragged, and some micro-batches have no targets
        return trained(ranks, strategy, Frames, ctc, [batches])

    results = run_on_ranks(train, world_size)
    reference = plain_ctc([0, 2, 3, 5, 7])
    for gradients, _ in results:
        assert_close(gradients, reference)
    assert sum(logged[0]["loss"][1] for _, logged in results) == 13
    assert [float(n) for n in torch.tensor([[*map(float, log[0]["infeasible"])] for _, log in results]).sum(0)] == [
        3,
        8,
    ]


@pytest.mark.parametrize("world_size, strategy", SETUPS[1:])
def test_a_rank_without_targets_takes_part_with_nothing(world_size: int, strategy: str) -> None:
    def train(ranks: Ranks) -> Gradients:
        rows = [1, 4] if ranks.dp_rank == ranks.dp_size - 1 else [[0, 2], [3], [5, 7]][ranks.dp_rank]
        return trained(ranks, strategy, Frames, ctc, [[spoken(rows)]])[0]

    reference = plain_ctc([0, 2] if world_size == 2 else [0, 2, 3, 5, 7])
    for gradients in run_on_ranks(train, world_size):
        assert_close(gradients, reference)


@pytest.mark.parametrize("world_size, strategy", SETUPS)
def test_a_step_without_targets_changes_nothing_and_counts(world_size: int, strategy: str) -> None:
    def train(ranks: Ranks) -> tuple[Gradients, Gradients, list[Any]]:
        empty, full = [spoken([1, 4]), spoken([6])], [spoken(range(ranks.dp_rank, 8, ranks.dp_size))]
        nothing, _ = trained(ranks, strategy, Frames, ctc, [empty])
        return nothing, *trained(ranks, strategy, Frames, ctc, [empty, full])

    results = run_on_ranks(train, world_size)
    reference = plain_ctc([0, 2, 3, 5, 7])
    for nothing, then, _ in results:
        assert all((value == 0).all() for value in nothing.values())
        assert_close(then, reference)  # and nothing is left over for the next step
    skipped = [
        [float(step["skipped_updates"][0]) for step in logged if "skipped_updates" in step] for *_, logged in results
    ]
    assert skipped[0] == [1, 0]
    assert sum(map(sum, skipped)) == 1


# Classes: a loss that is a mean, so that an empty micro-batch has none.


def clips(rows: Sequence[int]) -> Batch:
    """Some of 8 clips; without any, a silent one that counts for nothing."""
    torch.manual_seed(3)
    x, classes = torch.randn(8, 6), torch.randint(4, (8,))
    tensors = {"x": x[list(rows)], "classes": classes[list(rows)]}
    if not rows:
        tensors = {"x": torch.zeros(1, 6), "classes": torch.zeros(1, dtype=torch.long)}
    return Batch(tensors, len(rows), sample_ids=[str(row) for row in rows])


def careless(model: nn.Module, batch: Batch) -> LossOutput:
    """0 / 0 of an empty micro-batch, in its loss, its gradient and its metric."""
    logits, classes = model(batch.rows["x"]), batch.rows["classes"]
    weights = torch.full((len(classes),), float(batch.num_targets > 0))
    mean = (F.cross_entropy(logits, classes, reduction="none") * weights).sum() / weights.sum()
    right = ((logits.argmax(-1) == classes) * weights).sum() / weights.sum()
    return LossOutput(mean * batch.num_targets, {"accuracy": (right * batch.num_targets, float(batch.num_targets))})


def in_two_parts(model: nn.Module, batch: Batch) -> list[Callable[[], LossOutput]]:
    def half() -> LossOutput:
        output = careless(model, batch)
        return LossOutput(output.loss_sum / 2, {name: (one / 2, of / 2) for name, (one, of) in output.metrics.items()})

    return [half, half]


@pytest.mark.parametrize("loss_fn", [careless, in_two_parts])
@pytest.mark.parametrize("world_size, strategy", [*SETUPS, (2, "deepspeed")])
def test_an_empty_micro_batch_adds_nothing_even_where_its_loss_is_nan(
    world_size: int, strategy: str, loss_fn: LossFn
) -> None:
    def train(ranks: Ranks) -> tuple[Gradients, list[Any]]:
        mine = [[clips([0, 1, 2]), clips([])], [clips([]), clips([3])], [clips([]), clips([])], [clips([4]), clips([])]]
        return trained(ranks, strategy, Frames, loss_fn, [mine[ranks.dp_rank]])

    whole_batch = clips([[0, 1, 2], [0, 1, 2, 3], [], [0, 1, 2, 3, 4]][world_size - 1])
    results = run_on_ranks(train, world_size)
    for gradients, _ in results:
        assert_close(
            gradients, expected(Frames, lambda model: careless(model, whole_batch).loss_sum / whole_batch.num_targets)
        )
    with torch.no_grad():
        reference = careless(made(Frames), whole_batch)
    for name, total in {"loss": reference.loss_sum, "accuracy": reference.metrics["accuracy"][0]}.items():
        pairs_of_ranks = [logged[0].get(name, (0.0, 0.0)) for _, logged in results]
        assert sum(float(one) for one, _ in pairs_of_ranks) == pytest.approx(float(total), abs=1e-5)
        assert sum(float(of) for _, of in pairs_of_ranks) == whole_batch.num_targets
