"""What finetune and evaluate share: the configuration, the model, and the pretrained weights that it begins with."""

import logging
from dataclasses import asdict, field
from pathlib import Path

from core.checkpoint.store import CheckpointConfig
from core.config.schema import ConfigError, section
from core.data.stream import LoaderConfig
from core.distributed import Ranks
from core.job.run import RunConfig
from core.job.stop import StopConfig
from core.models.hubert.config import HubertEncoderConfig
from core.models.hubert.recognizer import HubertCTC
from core.optim.optim import OptimConfig
from core.parallel.settings import ParallelConfig
from core.recognition.recognize import DecodeConfig
from core.recognition.waveform_asr import WaveformAsrConfig
from core.report.loggers import LoggerConfig
from core.rundir.environment import runs_root
from core.samplers.plan import PlanConfig
from core.seeding import seed_everything
from core.train.settings import TrainConfig
from core.train.trained import PretrainedConfig, read_section, weights_hash
from recipes.hubert_iter2.assembly import trained_model

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = Path(__file__).parent / "finetune.yaml"
# What fine-tuning chooses for itself; in all else it must be the model that was pretrained.
REGULARIZATION = {
    "projection_dropout", "attention_dropout", "activation_dropout", "dropout", "layer_drop", "feature_grad_scale",
}  # fmt: skip


@section
class Config:
    """`pretrained: null` begins with random weights, to compare with."""

    run: RunConfig
    pretrained: PretrainedConfig | None
    data: WaveformAsrConfig
    plan: PlanConfig
    model: HubertEncoderConfig
    train: TrainConfig
    optim: OptimConfig
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    loggers: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        problems = []
        total = getattr(self.optim.schedule, "total_steps", self.train.max_steps)
        if total != self.train.max_steps:
            problems.append(f"optim.schedule.total_steps={total} must equal train.max_steps={self.train.max_steps}")
        if self.plan.over_budget == "crop":
            problems.append("plan.over_budget=crop would cut words off their audio; use skip, alone or error")
        if self.data.channel_mask is not None and self.data.channel_mask.length >= self.model.dim:
            problems.append(
                f"data.channel_mask.length={self.data.channel_mask.length} must be below model.dim={self.model.dim}"
            )
        if problems:
            raise ConfigError(problems)


def build_model(config: Config, *, vocab_size: int, seed: int) -> HubertCTC:
    """The same initial parameters for the same seed, on any number of ranks."""
    seed_everything(seed, "model")
    return HubertCTC(config.model, vocab_size=vocab_size)


def begin_with(model: HubertCTC, config: PretrainedConfig, *, normalize: bool, ranks: Ranks) -> None:
    """Put the encoder of a pretrained run into `model`. ValueError where it is another model, or heard other audio."""
    directory = runs_root() / config.run
    pretrained = trained_model(directory, ranks=ranks)
    theirs, ours = asdict(pretrained.config), asdict(model.config)
    differing = [
        f"model.{name}: {theirs[name]} there, {ours[name]} here"
        for name in ours.keys() - REGULARIZATION
        if theirs[name] != ours[name]
    ]
    if differing:
        raise ValueError(f"pretrained.run={config.run} is a model of another size: {'; '.join(sorted(differing))}")
    normalized = read_section(directory, "data")["crop"]["normalize"]
    if normalized != normalize:
        raise ValueError(f"data.normalize={normalize} must be {normalized}, as pretrained.run={config.run} heard audio")
    found = weights_hash(pretrained)
    if config.checkpoint not in (None, found):
        raise ValueError(f"pretrained.checkpoint={config.checkpoint}: the newest weights of {directory} are {found}")
    model.hubert.load_state_dict(pretrained.hubert.state_dict())
    logger.info("begins with the weights %s of %s", found, directory)
