"""Weights and optimizer states come back bit by bit, as they were when the save began, or are refused."""

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from core.parallel.weights import load_weights, save_weights
from tests.core.parallel.training import OPTIMIZERS, Net, adamw, assert_same, everything, net, train


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
@pytest.mark.parametrize("has_stepped", [False, True])
def test_round_trip_is_exact_and_training_goes_on_the_same(kind: str, has_stepped: bool, tmp_path: Path) -> None:
    model = net(1)
    optimizer = OPTIMIZERS[kind](model)
    train(model, optimizer, steps=3)
    save_weights(model, optimizer, tmp_path / "w", group=None).result(60)

    other = net(2)
    its_optimizer = OPTIMIZERS[kind](other)
    if has_stepped:
        train(other, its_optimizer, steps=5, seed=9)
    load_weights(other, its_optimizer, tmp_path / "w", group=None)
    assert_same(everything(model, optimizer), everything(other, its_optimizer))
    assert [g["lr"] for g in its_optimizer.param_groups] == [g["lr"] for g in optimizer.param_groups]
    assert train(model, optimizer, steps=3, seed=5) == train(other, its_optimizer, steps=3, seed=5)
    assert_same(everything(model, optimizer), everything(other, its_optimizer))


def test_before_the_first_step_there_are_no_states_and_saving_makes_none(tmp_path: Path) -> None:
    model = net(1)
    optimizer = adamw(model)
    save_weights(model, optimizer, tmp_path / "w", group=None).result(60)
    assert not optimizer.state
    other = net(2)
    its_optimizer = adamw(other)
    train(other, its_optimizer, steps=2)
    load_weights(other, its_optimizer, tmp_path / "w", group=None)
    assert not any(its_optimizer.state.values())
    assert_same(everything(model, optimizer), everything(other, its_optimizer))


def test_states_that_are_plain_numbers(tmp_path: Path) -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure=None):  # type: ignore[no-untyped-def]
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        state = self.state[parameter]
                        state["count"] = state.get("count", 0) + 1
                        state["rate"] = state.get("rate", 1.0) * 0.3
                        state["nothing"] = None

    model = net(1)
    optimizer = Counting(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, steps=3)
    save_weights(model, optimizer, tmp_path / "w", group=None).result(60)
    other = net(2)
    its_optimizer = Counting(other.parameters(), lr=0.1, momentum=0.9)
    load_weights(other, its_optimizer, tmp_path / "w", group=None)
    assert its_optimizer.state[other.first.weight]["count"] == 3
    assert_same(everything(model, optimizer), everything(other, its_optimizer))


def test_what_is_no_tensor_is_refused_at_saving(tmp_path: Path) -> None:
    model = net(1)
    optimizer = adamw(model)
    optimizer.state[model.first.weight] = {"history": [1, 2]}
    with pytest.raises(ValueError, match=r"optimizer\.first\.weight\.history is a list"):
        save_weights(model, optimizer, tmp_path / "w", group=None)


def test_training_goes_on_while_the_moment_of_the_save_is_written(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(300, 300) for _ in range(6)))
    optimizer = adamw(model)

    def step() -> None:
        model(torch.randn(2, 300)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    before = copy.deepcopy(everything(model, optimizer))
    written = save_weights(model, optimizer, tmp_path / "w", group=None)
    while not written.done():
        step()
    written.result()
    other = nn.Sequential(*(nn.Linear(300, 300) for _ in range(6)))
    its_optimizer = adamw(other)
    load_weights(other, its_optimizer, tmp_path / "w", group=None)
    assert_same(before, everything(other, its_optimizer))


def test_wrappers_leave_no_trace_and_no_thread_stays(tmp_path: Path) -> None:
    model = net(1)
    wrapped = copy.deepcopy(model)
    wrapped.first = checkpoint_wrapper(wrapped.first)
    wrapped.second = torch.compile(wrapped.second)  # type: ignore[assignment]
    optimizer = adamw(wrapped)
    for parameter in wrapped.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for number in range(3):
        save_weights(wrapped, optimizer, tmp_path / f"w{number}", group=None).result(60)
    its_optimizer = adamw(model)
    load_weights(model, its_optimizer, tmp_path / "w2", group=None)
    assert torch.equal(model.first.weight, dict(wrapped.named_parameters())["first._checkpoint_wrapped_module.weight"])
    assert its_optimizer.state[model.second.weight]["step"] == 1
    assert not [t for t in threading.enumerate() if "save-weights" in t.name and t.is_alive()]


# ---- what does not fit


def saved(tmp_path: Path) -> Path:
    model = net(1)
    optimizer = adamw(model)
    train(model, optimizer, steps=1)
    save_weights(model, optimizer, tmp_path / "w", group=None).result(60)
    return tmp_path / "w"


def test_keys_sizes_and_types_must_fit(tmp_path: Path) -> None:
    path = saved(tmp_path)

    class More(Net):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.ModuleList(nn.Linear(1, 1) for _ in range(9))

    class Less(Net):
        def __init__(self) -> None:
            super().__init__()
            del self.unused
            self.second = nn.Linear(8, 4)

    def attempt(model: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer] = adamw) -> str:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match="does not fit this run") as caught:
            load_weights(model, make(model), path, group=None)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return str(caught.value)

    text = attempt(More())
    assert "it lacks model.more.0.bias, model.more.0.weight" in text and "13 more (18 in all)" in text
    text = attempt(Less())
    assert "has, and this run has not, model.unused.bias, model.unused.weight" in text
    assert "model.second.weight (3, 8) instead of (4, 8)" in text
    assert "model.first.weight torch.float32 instead of torch.float64" in attempt(Net().double())
    text = attempt(net(1), OPTIMIZERS["sgd"])
    assert "it lacks optimizer_class.SGD" in text and "and this run has not, optimizer.first.bias.exp_avg" in text
    assert "max_exp_avg_sq" in attempt(net(1), OPTIMIZERS["amsgrad"])


def test_weights_only_leaves_the_optimizer_and_takes_another_type(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model, reference = net(2).double(), net(1)
    train(reference, adamw(reference), steps=1)
    load_weights(model, None, path, group=None, weights_only=True)
    assert_same(
        {k: v.double() if v.is_floating_point() else v for k, v in reference.state_dict().items()},
        dict(model.state_dict()),
    )


def test_bombs_objects_links_and_other_directories_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model = net(1)
    good = (path / ".metadata").read_bytes()
    trace = tmp_path / "trace"

    class Bomb:
        def __reduce__(self) -> tuple:
            return open, (str(trace), "w")

    def attempt(match: str) -> None:
        with pytest.raises(ValueError, match=match):
            load_weights(model, adamw(model), path, group=None)

    (path / ".metadata").write_bytes(pickle.dumps(Bomb()))
    attempt(r"refused: (_io|io)\.open")
    assert not trace.exists()
    (path / ".metadata").write_bytes(good.replace(b"__0_0.distcp", b"../x0.distcp"))
    attempt(r"lacks \.\./x0\.distcp")
    (path / ".metadata").write_bytes(good)
    (path / "__0_0.distcp").rename(tmp_path / "elsewhere")
    (path / "__0_0.distcp").symlink_to(tmp_path / "elsewhere")
    attempt("symlink")
    save({"object": [1, 2]}, storage_writer=FileSystemWriter(tmp_path / "o"), no_dist=True)
    with pytest.raises(ValueError, match="BytesStorageMetadata"):
        load_weights(model, adamw(model), tmp_path / "o", group=None)
