"""The configuration of a training run: the sections that all recipes have, and what must agree among them."""

from dataclasses import field
from typing import ClassVar

from core.checkpoint.store import CheckpointConfig
from core.config.schema import ConfigError, section, unequal_keys
from core.data.stream import LoaderConfig
from core.job.run import Run
from core.job.settings import JobConfig
from core.job.watchdog import WatchdogConfig
from core.optim.optim import OptimConfig
from core.parallel.settings import ParallelConfig
from core.report.loggers import LoggerConfig
from core.samplers.bucketing import BucketingConfig
from core.timing.phases import TimingConfig
from core.train.settings import TrainConfig


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
        """The rules by which checkpoints stay."""
        return self.checkpoint

    @property
    def watchdog(self) -> WatchdogConfig:
        """The time that a rank may be silent."""
        return self.train.watchdog

    @property
    def timing(self) -> TimingConfig:
        """The steps that the speed of a rank is taken of."""
        return self.train.timing


TrainingRun = Run[TrainingConfig]
