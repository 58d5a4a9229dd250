"""A small net with every sort of tensor, ways to train it, and an independent walk over all its numbers."""

from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.norm = nn.BatchNorm1d(8)
        self.second = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.full((3,), 0.5), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.norm(self.first(x)))) * self.frozen


def net(seed: int) -> Net:
    torch.manual_seed(seed)
    return Net()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int, seed: int = 0) -> list[float]:
    losses = []
    for step in range(steps):
        torch.manual_seed(1000 * seed + step)
        loss = model(torch.randn(4, 5)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def whole(value: torch.Tensor) -> torch.Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """All numbers by name, gathered: an independent walk over model and optimizer."""
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    found: dict[str, object] = {name: whole(value) for name, value in bare.state_dict().items()}
    for name, parameter in bare.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}:{key}"] = whole(value) if isinstance(value, torch.Tensor) else value
    return found


def assert_same(a: dict[str, object], b: dict[str, object]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        other = b[name]
        if isinstance(value, torch.Tensor):
            assert isinstance(other, torch.Tensor) and value.dtype == other.dtype and torch.equal(value, other), name
        else:
            assert type(value) is type(other) and value == other, name


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "amsgrad": lambda m: torch.optim.AdamW(m.parameters(), amsgrad=True),
    "fused": lambda m: torch.optim.AdamW(m.parameters(), fused=True),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "adafactor": lambda m: torch.optim.Adafactor(m.parameters()),
    "nadam": lambda m: torch.optim.NAdam(m.parameters()),
    "groups": lambda m: torch.optim.Adam([{"params": [p], "lr": 0.1 * i} for i, p in enumerate(m.parameters())]),
}
