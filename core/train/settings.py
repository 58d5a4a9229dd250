"""The configuration of training: how long, what the loop does on the way, and the sections that all recipes have."""

from dataclasses import field
from typing import Annotated, ClassVar

from pydantic import Field

from core.checkpoint.store import CheckpointConfig
from core.config.schema import ConfigError, section, unequal_keys
from core.data.stream import LoaderConfig
from core.job.run import Run
from core.job.settings import JobConfig
from core.job.stop import EarlyStopConfig
from core.job.watchdog import WatchdogConfig
from core.optim.optim import OptimConfig
from core.parallel.settings import ParallelConfig
from core.report.loggers import LoggerConfig
from core.samplers.bucketing import BucketingConfig
from core.timing.phases import TimingConfig

Count = Annotated[int, Field(ge=1)]


@section
class TrainConfig:
    """`max_steps` updates; a line of metrics every `log_every_steps`, a validation every `validate_every_steps`.

    Bad samples are skipped until more than `max_bad_share` of the examples (and more than 10) are bad: exit code 89.
    More than `max_skipped_in_row` updates in a row without a finite gradient: back to the last checkpoint, once, with
    the data that follows; if that does not help, exit code 88.
    A rank that takes more than `straggler_ratio` x the mean of all ranks is named in a warning.
    """

    max_steps: Count
    log_every_steps: Count = 10
    validate_every_steps: Count | None = None
    early_stop: EarlyStopConfig | None = None
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    max_skipped_in_row: Count = 20
    straggler_ratio: Annotated[float, Field(ge=1)] = 1.3
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    timing: TimingConfig = field(default_factory=TimingConfig)

    def __post_init__(self) -> None:
        if self.early_stop is not None and self.validate_every_steps is None:
            raise ValueError("early_stop needs validate_every_steps: set it, or remove early_stop")


@section
class TrainingConfig(JobConfig):
    """The base of a recipe's configuration, which adds `data`, `model` and its own, and says which rules `plan` has.

    `EQUAL`: keys that must agree; of each pair one may be left out. `problems` finds what is wrong, to be extended.
    """

    EQUAL: ClassVar[tuple[tuple[str, str], ...]] = (("optim.schedule.total_steps", "train.max_steps"),)

    plan: BucketingConfig
    train: TrainConfig
    optim: OptimConfig
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    loggers: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise ConfigError(problems)

    def problems(self) -> list[str]:
        """Return what contradicts itself, a sentence each."""
        return unequal_keys(self)

    @property
    def kept_checkpoints(self) -> CheckpointConfig:
        return self.checkpoint

    @property
    def watchdog(self) -> WatchdogConfig:
        return self.train.watchdog

    @property
    def timing(self) -> TimingConfig:
        return self.train.timing


TrainingRun = Run[TrainingConfig]
