"""Where else the records of metrics.jsonl go: TensorBoard, and Weights & Biases for those who use it."""

import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from core.config.schema import section
from core.rundir.files import TENSORBOARD, WANDB_ID
from core.rundir.whole_files import write_whole

logger = logging.getLogger(__name__)


@section
class WandbConfig:
    """Settings of Weights & Biases. The key comes from the environment (WANDB_API_KEY), never from here.

    `offline` writes files under the run directory for `wandb sync`; so does `online` when the server cannot be
    reached.
    """

    project: str
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"


@section
class LoggerConfig:
    """The loggers that get the records besides metrics.jsonl."""

    tensorboard: bool = True
    wandb: WandbConfig | None = None


class Logger(Protocol):
    """The interface of what gets every record."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def open_loggers(
    config: LoggerConfig, run_directory: Path, *, step: int, run_config: Mapping[str, Any]
) -> list[Logger]:
    """Open the loggers of a run that goes on after `step` updates; rank 0 only."""
    loggers: list[Logger] = []
    if config.tensorboard:
        loggers.append(TensorBoardLogger(run_directory, step=step))
    if config.wandb is not None:
        loggers.append(WandbLogger(config.wandb, run_directory, run_config=run_config))
    return loggers


class TensorBoardLogger:
    """The event files under `tensorboard/`; what an earlier link wrote beyond `step` is purged."""

    def __init__(self, run_directory: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_directory / TENSORBOARD), purge_step=step + 1 if step else None)

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in _numbers(record).items():
            self._writer.add_scalar(f"{record['phase']}/{name}", value, record["step"])
        if record["phase"] != "train":
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbLogger:
    """A W&B run over all links; `step` is the x axis of every curve."""

    def __init__(self, config: WandbConfig, run_directory: Path, *, run_config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                "log.wandb is set but wandb is not installed; pip install 'wandb>=0.19,<1', or set log.wandb=null"
            ) from error
        id_file = run_directory / WANDB_ID
        if not id_file.exists():
            write_whole(id_file, uuid.uuid4().hex + "\n")
        arguments: dict[str, Any] = {
            "project": config.project,
            "entity": config.entity,
            "name": run_directory.name,
            "id": id_file.read_text(encoding="utf-8").strip(),
            "dir": str(run_directory),
            "config": dict(run_config),
            "resume": "allow",
        }
        try:
            self._run = wandb.init(mode=config.mode, **arguments)
        except wandb.errors.Error as error:  # no key, no network: training matters more
            logger.warning("W&B cannot be reached (%s); writing files for `wandb sync` in %s", error, run_directory)
            self._run = wandb.init(mode="offline", **arguments)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Mapping[str, Any]) -> None:
        named = {f"{record['phase']}/{name}": value for name, value in _numbers(record).items()}
        if named:
            self._run.log({"step": record["step"], **named})

    def close(self) -> None:
        self._run.finish()


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a record, without its place, time and the values that are null."""
    place = ("step", "token", "link")
    return {
        name: value
        for name, value in record.items()
        if name not in place and isinstance(value, int | float) and not isinstance(value, bool)
    }
