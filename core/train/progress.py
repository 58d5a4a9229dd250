"""How far a run is: what state.json holds besides weights and optimizer, so that a resume is exact."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.parallel.engine import Engine
from core.train.metrics import MetricSums, merged_names, ratios
from core.train.run import Run
from core.train.stop import EarlyStop


@dataclass
class Progress:
    """`step` counts updates done; `position` is where the data stands after them."""

    validate_every: int | None
    early: EarlyStop | None
    step: int = 0
    position: dict[str, Any] | None = None
    validated_step: int = 0
    is_early: bool = False
    bad_ids: list[str] = field(default_factory=list)
    skipped_updates: float = 0.0
    skipped_in_row: float = 0.0
    sums: MetricSums = field(default_factory=MetricSums)  # since the last logged step

    @classmethod
    def restored(cls, run: Run, engine: Engine) -> "Progress":
        """From the newest checkpoint, which also fills the engine; a new run starts at 0."""
        train = run.config.train
        progress = cls(train.validate_every_steps, EarlyStop(train.early_stop) if train.early_stop else None)
        state = run.checkpoints.restore(engine)
        if state is None:
            return progress
        for name in ("step", "position", "validated_step", "is_early", "bad_ids", "skipped_updates", "skipped_in_row"):
            setattr(progress, name, state[name])
        if progress.early is not None and state["early"] is not None:
            progress.early.restore(state["early"])
        if run.ranks.is_first:
            progress.sums.add({name: (pair[0], pair[1]) for name, pair in state["sums"].items()})
        engine.restore(state["engine"])
        return progress

    def is_validation_due(self, is_wanted: bool) -> bool:
        if not is_wanted or self.validate_every is None or self.is_early:
            return False
        return self.step > self.validated_step and self.step % self.validate_every == 0

    def save(self, run: Run, engine: Engine, *, metrics: Mapping[str, float] | None = None, wait: bool = False) -> None:
        """A checkpoint of now; all ranks together."""
        names, totals = self.reduced(run)
        pairs = totals.reshape(len(names), 2).tolist()
        state = {
            "step": self.step,
            "position": self.position,
            "validated_step": self.validated_step,
            "is_early": self.is_early,
            "bad_ids": self.bad_ids,
            "skipped_updates": self.skipped_updates,
            "skipped_in_row": self.skipped_in_row,
            "early": None if self.early is None else self.early.state(),
            "sums": {name: pair for name, pair in zip(names, pairs, strict=True) if all(map(_is_number, pair))},
            "engine": engine.state(),
        }
        run.checkpoints.save(engine, state, step=self.step, metrics=metrics, wait=wait)
        run.stop.observe(save_s=run.checkpoints.save_s)

    def reduced(self, run: Run) -> tuple[list[str], Any]:
        """(names, totals) of the sums over all ranks; the one place where the host waits for the device."""
        names = merged_names(run.ranks.gather(self.sums.names()))
        totals = self.sums.as_tensor(names)
        return names, totals.new_tensor(run.ranks.total(totals.tolist()))

    def take_metrics(self, run: Run) -> dict[str, float | None]:
        """The means since the last call; counts skipped updates over the run and in a row."""
        names, totals = self.reduced(run)
        metrics = ratios(names, totals)
        skipped = dict(zip(names, totals[::2].tolist(), strict=True)).get("skipped_updates", 0.0)
        self.skipped_updates += skipped
        self.skipped_in_row = self.skipped_in_row + skipped if skipped and metrics.get("grad_norm") is None else skipped
        self.sums.clear()
        return metrics | {"skipped_updates": self.skipped_updates}


def _is_number(value: float) -> bool:
    return value - value == 0  # neither infinite nor NaN
