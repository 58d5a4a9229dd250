"""What every job needs of a configuration: which run it is, and when it stops. Training adds to it."""

from dataclasses import field
from typing import Literal

from core.checkpoint.store import CheckpointConfig
from core.config.schema import section
from core.job.stop import StopConfig
from core.job.watchdog import WatchdogConfig
from core.timing.phases import TimingConfig


@section
class RunConfig:
    """Which run, and how this link of it is to be watched.

    `link_steps`: end each link after so many steps (exit code 75). `record_samples`: write the sample ids of each step
    to samples.jsonl. `accept_data`: the `data` section may differ from the one the run began with; it goes on with the
    new data as a new segment of the plan. `debug`: four steps with anomaly detection. `profile`: a trace of a few steps
    under profile/.
    """

    name: str
    seed: int = 42
    device: Literal["auto", "cpu", "cuda"] = "auto"
    link_steps: int | None = None
    record_samples: bool = False
    accept_data: bool = False
    debug: bool = False
    profile: bool = False


@section
class JobConfig:
    """The configuration of a job, which a recipe extends by sections of its own; to train: TrainingConfig."""

    run: RunConfig
    stop: StopConfig = field(default_factory=StopConfig)

    @property
    def kept_checkpoints(self) -> CheckpointConfig:
        """The rules by which checkpoints stay, for a job that makes some."""
        return CheckpointConfig()

    @property
    def watchdog(self) -> WatchdogConfig:
        """The time that a rank may be silent."""
        return WatchdogConfig()

    @property
    def timing(self) -> TimingConfig:
        """The steps that the speed of a rank is taken of."""
        return TimingConfig()
