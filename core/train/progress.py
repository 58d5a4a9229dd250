"""How far a run is: what state.json holds besides weights and optimizer, so that a resume is exact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from core.checkpoint.retention import TRAIN_LOSS
from core.job.stop import EarlyStop
from core.parallel.engine import Engine
from core.train.failed_steps import SkippedUpdates
from core.train.metrics import MetricSums, merged_names, ratios
from core.train.settings import TrainingRun


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
    skipped: SkippedUpdates = field(default_factory=SkippedUpdates)
    owes_save: bool = False  # one was due while updates were being skipped
    went_back_to: int | None = None  # the step of the checkpoint of the last `go_back`
    sums: MetricSums = field(default_factory=MetricSums)  # since the last logged step
    train_loss: float | None = None  # of the last record

    @classmethod
    def restored(cls, run: TrainingRun, engine: Engine) -> "Progress":
        """Return the progress of the newest checkpoint, which also fills the engine; a new run starts at 0."""
        train = run.config.train
        progress = cls(train.validate_every_steps, EarlyStop(train.early_stop) if train.early_stop else None)
        state = run.checkpoints.restore(engine)
        if state is not None:
            progress.position, progress.bad_ids = state["position"], state["bad_ids"]
            progress.skipped_updates, progress.skipped.in_row = state["skipped_updates"], state["skipped_in_row"]
            progress._take(state, run, engine)
        return progress

    def go_back(self, run: TrainingRun, engine: Engine) -> bool:
        """Take weights and optimizer back from the newest checkpoint, but go on with the data that follows now.

        The same data would end in the same way. False, and nothing done, where there is no checkpoint or where this
        has been tried from the newest one already. All ranks together.
        """
        run.checkpoints.wait()
        newest = run.ranks.from_first(run.checkpoints.newest_step())
        state = None if newest in (None, self.went_back_to) else run.checkpoints.restore(engine)
        if state is None:
            return False
        self._take(state, run, engine)
        self.went_back_to, self.skipped.in_row, self.owes_save = newest, 0, False
        return True

    def _take(self, state: Mapping[str, Any], run: TrainingRun, engine: Engine) -> None:
        """Take what belongs to the weights of a checkpoint."""
        for name in ("step", "validated_step", "is_early"):
            setattr(self, name, state[name])
        self.train_loss = state.get(TRAIN_LOSS)
        if self.early is not None and state["early"] is not None:
            self.early.restore(state["early"])
        self.sums.clear()
        if run.ranks.is_first:
            self.sums.add({name: (pair[0], pair[1]) for name, pair in state["sums"].items()})
        engine.restore(state["engine"])

    def is_save_due(self, run: TrainingRun) -> bool:
        return run.checkpoints.is_due(self.step) or self.owes_save

    def is_validation_due(self, is_wanted: bool) -> bool:
        if not is_wanted or self.validate_every is None or self.is_early:
            return False
        return self.step > self.validated_step and self.step % self.validate_every == 0

    def save(
        self, run: TrainingRun, engine: Engine, *, metrics: Mapping[str, float] | None = None, wait: bool = False
    ) -> None:
        """Save now, all ranks together; while updates are being skipped, wait for one that is not.

        So that there is one from before to go back to; but the last of a link (`wait`) is saved as it is.
        """
        run.phases.enter("save")
        self.skipped.look(run)
        self.owes_save = self.skipped.in_row > 0 and not wait
        if self.owes_save:
            return
        names = merged_names(run.ranks.gather(self.sums.names()))
        pairs = self._reduced(run, names).reshape(len(names), 2).tolist()
        state = {
            "step": self.step,
            "position": self.position,
            "validated_step": self.validated_step,
            "is_early": self.is_early,
            "bad_ids": self.bad_ids,
            "skipped_updates": self.skipped_updates,
            "skipped_in_row": self.skipped.in_row,
            "early": None if self.early is None else self.early.state(),
            TRAIN_LOSS: self.train_loss,
            "sums": {name: pair for name, pair in zip(names, pairs, strict=True) if all(map(_is_number, pair))},
            "engine": engine.state(),
        }
        trained = {} if self.train_loss is None else {TRAIN_LOSS: self.train_loss}
        run.checkpoints.save(engine, state, step=self.step, metrics=trained | dict(metrics or {}) or None, wait=wait)
        run.stop.observe(save_s=run.checkpoints.save_s)

    def _reduced(self, run: TrainingRun, names: Sequence[str]) -> Tensor:
        """Return the sums of these names over all ranks; the host waits for the device."""
        totals = self.sums.as_tensor(names)
        return totals.new_tensor(run.ranks.total(totals.tolist()))

    def take_metrics(self, run: TrainingRun, *, names: Sequence[str]) -> dict[str, float | None]:
        """Return the means since the last call, and the number of skipped updates over the run."""
        totals = self._reduced(run, names)
        metrics = ratios(names, totals)
        self.skipped_updates += dict(zip(names, totals[::2].tolist(), strict=True)).get("skipped_updates", 0.0)
        self.skipped.look(run)
        self.sums.clear()
        loss = metrics.get("loss")
        self.train_loss = loss if loss is not None and _is_number(loss) else None
        return metrics | {"skipped_updates": self.skipped_updates}


def _is_number(value: float) -> bool:
    return value - value == 0  # neither infinite nor NaN
