"""A tiny engine, a store and small deeds for the tests of checkpoints."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.checkpoint.store import CheckpointConfig, CheckpointStore
from core.distributed import Ranks
from core.parallel.weights import load_weights, save_weights

ALONE = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))


class TinyEngine:
    """A model whose parameters tell the step it is at."""

    def __init__(self, *, size: int = 3, ranks: Ranks = ALONE) -> None:
        self.model = nn.Linear(size, size)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.ranks = ranks

    def at(self, step: int) -> "TinyEngine":
        nn.init.constant_(self.model.weight, float(step))
        return self

    @property
    def step(self) -> float:
        assert (self.model.weight == self.model.weight[0, 0]).all(), "torn"
        return self.model.weight[0, 0].item()

    def save(self, directory: Path) -> Future[None]:
        return save_weights(self.model, self.optimizer, directory, group=self.ranks.saves)

    def load(self, directory: Path, *, weights_only: bool = False) -> None:
        load_weights(self.model, self.optimizer, directory, group=self.ranks.votes, weights_only=weights_only)


def store(directory: Path, *, ranks: Ranks = ALONE, token: int = 1, **config: Any) -> CheckpointStore:
    return CheckpointStore(directory, CheckpointConfig(**config), ranks=ranks, token=token)


def save_steps(checkpoints: CheckpointStore, *steps: int, engine: TinyEngine | None = None) -> None:
    engine = engine or TinyEngine()
    for step in steps:
        checkpoints.save(engine.at(step), {"step": step}, step=step, wait=True)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def restored(directory: Path, **kwargs: Any) -> tuple[Any, float]:
    engine = TinyEngine()
    return store(directory, **kwargs).restore(engine), engine.step


def complete_steps(directory: Path) -> list[int]:
    return sorted(int(path.parent.name[5:]) for path in directory.glob("step_*/COMPLETE"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
