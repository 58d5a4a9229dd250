"""A run goes on from its checkpoint bit by bit; with other ranks or another strategy as near as arithmetic allows."""

import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.checkpoint.store import CheckpointConfig, CheckpointError, CheckpointStore
from core.distributed import Ranks
from core.optim.optim import OptimConfig
from core.optim.parameters import FreezeConfig, freeze
from core.parallel.engine import Engine
from core.parallel.weights import load_weights, save_weights
from core.rundir.files import CHECKPOINTS
from core.train.trained import load_trained
from tests.closeness import assert_close
from tests.core.parallel.toy import MAX_NORM, ROWS, STRATEGIES, Cut, Toy, built, full_batch, loss_sum, numbers, update
from tests.core.parallel.training import assert_same, everything
from tests.ranks import run_on_ranks

LR = 0.01
OPTIM = OptimConfig(lr=LR, weight_decay=0.1, max_norm=MAX_NORM, freeze=FreezeConfig(patterns=[r"layers\.0"]))
ALONE = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))

every_strategy = pytest.mark.parametrize("strategy", list(STRATEGIES))


class Rich(Toy):
    """Frozen parameters, tied ones, odd sizes, three dimensions, and a buffer that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.middle, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.middle.weight
        self.cube = nn.Parameter(torch.randn(3, 5, 7) / 10)
        self.register_buffer("count", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        x = self.first(x)
        for layer in self.layers:
            x = self.again(torch.tanh(self.middle(layer(x))))
        return self.last(x) + self.cube.sum(dim=(1, 2))


def rich(seed: int) -> Rich:
    torch.manual_seed(seed)
    model = Rich()
    freeze(model, OPTIM.freeze)
    return model


def cut_for(num_ranks: int) -> Cut:
    """Each rank's rows in two micro-batches, no two ranks alike."""
    edges = [0, *(ROWS * (rank + 1) // num_ranks for rank in range(num_ranks))]
    return tuple([range(a, a + 1), range(a + 1, b)] for a, b in pairwise(edges))


class Link:
    """An engine that goes on from the newest checkpoint of a run, where there is one."""

    def __init__(self, ranks: Ranks, strategy: str, run: Path, *, seed: int, optim: OptimConfig = OPTIM) -> None:
        self.ranks = ranks
        self.store = CheckpointStore(run / CHECKPOINTS, CheckpointConfig(), ranks=ranks, token=1)
        self.bare = rich(seed)
        self.engine: Engine = built(ranks, strategy, optim, model=self.bare)
        state = self.store.restore(self.engine)
        self.step = 0 if state is None else state["step"]
        if state is not None:
            self.engine.restore(state["engine"])

    def train(self, steps: int) -> list[tuple[float, float]]:
        first, self.step = self.step, self.step + steps
        cut = cut_for(self.ranks.dp_size)
        return [update(self.engine, self.ranks, cut, step, lr=LR) for step in range(first, self.step)]

    def save(self, *, wait: bool = False) -> None:
        self.store.save(self.engine, {"step": self.step, "engine": self.engine.state()}, step=self.step, wait=wait)

    def numbers(self) -> dict[str, Tensor]:
        return numbers(self.engine.model) | {name: value.clone() for name, value in self.bare.named_buffers()}


@every_strategy
@pytest.mark.parametrize("saved_at", [0, 2])
def test_a_run_goes_on_bit_by_bit(strategy: str, saved_at: int, tmp_path: Path) -> None:
    def train(ranks: Ranks) -> tuple[list, list, dict[str, Tensor], list[dict[str, Tensor]]]:
        first = Link(ranks, strategy, tmp_path, seed=0)
        first.train(saved_at)
        before = first.numbers()
        first.save()
        uninterrupted = first.train(3)  # while it is being written
        first.store.wait()
        second = Link(ranks, strategy, tmp_path, seed=1)
        is_tied = second.bare.again.weight is second.bare.middle.weight
        assert second.step == saved_at and is_tied
        continued = second.train(3)
        went_back = Link(ranks, strategy, tmp_path, seed=1)
        went_back.train(1)
        went_back.step = went_back.store.restore(went_back.engine)["step"]  # type: ignore[index]
        assert went_back.train(3) == continued
        return uninterrupted, continued, before, [first.numbers(), second.numbers(), went_back.numbers()]

    results = run_on_ranks(train, 2)
    for uninterrupted, continued, _, (ended, *others) in results:
        assert continued == uninterrupted
        for parameters in others:
            assert_same(ended, parameters)  # type: ignore[arg-type]
    trained = rich(2)
    assert load_trained(trained, tmp_path, ranks=ALONE) == saved_at
    assert_same(results[0][2], numbers(trained) | dict(trained.named_buffers()))  # type: ignore[arg-type]


def plain(path: Path, seed: int = 3) -> dict[str, object]:
    """What plain torch reads, in one process."""
    model = rich(seed)
    optimizer = optimizer_of(model)
    load_weights(model, optimizer, path, group=None)
    return everything(model, optimizer)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]
    return torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=LR, weight_decay=0.1)


CHAIN = [
    ("deepspeed 3", 2),
    ("deepspeed 2", 3),
    ("fsdp2", 2),
    ("deepspeed 1", 1),
    ("deepspeed 3", 3),
    ("deepspeed 0", 2),
    ("deepspeed 2", 2),
    ("ddp", 1),
]


def test_a_run_goes_on_at_another_number_of_ranks_and_with_another_strategy(tmp_path: Path) -> None:
    def link(ranks: Ranks, strategy: str, number: int) -> tuple[float, float]:
        here = Link(ranks, strategy, tmp_path, seed=number)
        assert here.step == number
        here.engine.save(tmp_path / "again" / str(number)).result(60)
        (pair,) = here.train(1)
        here.save(wait=True)
        return pair

    model = rich(0)
    optimizer = optimizer_of(model)
    for number, (strategy, world_size) in enumerate(CHAIN):
        (norm_and_loss, *others) = run_on_ranks(link, world_size, strategy, number)
        assert all(other == norm_and_loss for other in others)
        if number:
            saved = plain(tmp_path / CHECKPOINTS / f"step_{number:08d}" / "weights")
            assert_same(saved, plain(tmp_path / "again" / str(number)))
        assert norm_and_loss == pytest.approx(plain_update(model, optimizer, number), rel=1e-5)
    ended = plain(tmp_path / CHECKPOINTS / f"step_{len(CHAIN):08d}" / "weights")
    for name, value in model.named_parameters():
        found = ended[name]
        assert isinstance(found, Tensor)
        assert_close(found, value, name=name)


def plain_update(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> tuple[float, float]:
    loss = loss_sum(model, *full_batch(step)) / ROWS
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), norm.item()


@pytest.mark.parametrize("strategy", ["deepspeed 0", "deepspeed 2", "deepspeed 3"])
def test_what_does_not_fit_is_refused(strategy: str, tmp_path: Path) -> None:
    model = rich(0)
    optimizer = optimizer_of(model)
    plain_update(model, optimizer, 0)
    save_weights(model, optimizer, tmp_path / "good", group=None).result(60)
    optimizer.state[model.last.weight]["step"] += 1
    save_weights(model, optimizer, tmp_path / "uneven", group=None).result(60)
    save_weights(model, torch.optim.SGD(model.parameters()), tmp_path / "sgd", group=None).result(60)
    other = Toy()
    save_weights(other, torch.optim.SGD(other.parameters()), tmp_path / "other", group=None).result(60)
    save_weights(model, optimizer, tmp_path / "bomb", group=None).result(60)
    trace = tmp_path / "trace"
    (tmp_path / "bomb" / ".metadata").write_bytes(pickle.dumps(Bomb(trace)))

    def attempt(ranks: Ranks) -> dict[str, str]:
        errors = {}
        for name in ("good", "uneven", "sgd", "other", "bomb"):
            engine = built(ranks, strategy, OPTIM, model=rich(1))
            try:
                engine.load(tmp_path / name)
            except ValueError as error:
                errors[name] = str(error)
        return errors

    first, second = run_on_ranks(attempt, 2)
    assert first == second
    expected = {
        "sgd": "it lacks optimizer_class.AdamW",
        "other": "it lacks model.again.bias",
        "bomb": "is not opened",
    }
    if strategy != "deepspeed 0":
        expected["uneven"] = "ZeRO keeps one for both"
    assert first.keys() == expected.keys()
    for name, text in expected.items():
        assert text in first[name]
    assert not trace.exists()


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return open, (str(self.trace), "w")


def test_a_damaged_file_of_zero_is_refused(tmp_path: Path) -> None:
    def save(ranks: Ranks) -> None:
        link = Link(ranks, "deepspeed 3", tmp_path, seed=0)
        link.train(1)
        link.save(wait=True)

    def restore(ranks: Ranks) -> str:
        with pytest.raises(CheckpointError) as caught:
            Link(ranks, "deepspeed 3", tmp_path, seed=0)
        return str(caught.value)

    run_on_ranks(save, 2)
    (path,) = (tmp_path / CHECKPOINTS).glob("step_*/weights/__1_0.distcp")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for message in run_on_ranks(restore, 2):
        assert "none can be loaded" in message


def test_another_optimizer_class_is_refused(tmp_path: Path) -> None:
    """AdamW and Adam keep the same states, and mean something else by them."""

    def attempt(ranks: Ranks) -> str:
        link = Link(ranks, "deepspeed 1", tmp_path, seed=0)
        link.train(1)
        link.save(wait=True)
        with pytest.raises(CheckpointError) as caught:
            Link(ranks, "deepspeed 1", tmp_path, seed=0, optim=replace(OPTIM, name="adam"))
        return str(caught.value)

    (message,) = run_on_ranks(attempt, 1)
    assert "it lacks optimizer_class.Adam;" in message and "and this run has not, optimizer_class.AdamW" in message
