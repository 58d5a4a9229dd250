"""What train and prepare share: the configuration, and what is clustered in this iteration: MFCC."""

from dataclasses import field
from pathlib import Path

from core.checkpoint.store import CheckpointConfig
from core.config.schema import ConfigError, section
from core.data.stream import LoaderConfig
from core.distributed import Ranks
from core.job.run import RunConfig
from core.job.stop import StopConfig
from core.losses.masked_prediction import MaskedPredictionConfig
from core.models.hubert.config import HubertConfig
from core.models.hubert.model import HubertPretraining
from core.optim.optim import OptimConfig
from core.parallel.settings import ParallelConfig
from core.report.loggers import LoggerConfig
from core.samplers.settings import ShapedPlanConfig
from core.train.settings import TrainConfig
from core.train.trained import TrainedRun, weights_hash
from core.units.frame_features import HiddenFeatures, MfccFeatures, layers_of_run
from core.units.frame_labels import FrameGrid
from core.units.labelled_speech import LabelledSpeechConfig
from core.units.labelling import LabellingConfig
from core.units.mfcc import Convention
from core.units.unit_quality import QualityConfig

DEFAULT_CONFIG = Path(__file__).parent / "config.yaml"


@section
class FeatureConfig:
    """What is clustered: MFCC-39 as torchaudio or as Kaldi makes them (core/units/mfcc.py)."""

    convention: Convention = "torchaudio"


@section
class Config:
    """`features` and `labelling`: how prepare makes labels; `quality`: which layers train compares at its end."""

    run: RunConfig
    data: LabelledSpeechConfig
    features: FeatureConfig
    labelling: LabellingConfig
    plan: ShapedPlanConfig
    model: HubertConfig
    train: TrainConfig
    optim: OptimConfig
    quality: QualityConfig
    loss: MaskedPredictionConfig = field(default_factory=MaskedPredictionConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    loggers: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        steps, clusters = getattr(self.optim.schedule, "total_steps", None), self.labelling.kmeans.num_clusters
        equal = {
            "optim.schedule.total_steps and train.max_steps": (steps or self.train.max_steps, self.train.max_steps),
            "labelling.kmeans.num_clusters and model.num_classes": (clusters, self.model.num_classes),
            "plan.max_cut_s and data.crop.max_s": (self.plan.max_cut_s, self.data.crop.max_s),
        }
        problems = [
            f"{keys} must be equal, got {one} and {other}" for keys, (one, other) in equal.items() if one != other
        ]
        if self.plan.over_budget != "crop":
            problems.append(f"plan.over_budget={self.plan.over_budget} must be crop: longer clips give a part of them")
        if max(self.quality.layers) > self.model.num_layers:
            problems.append(f"quality.layers={self.quality.layers} must be at most {self.model.num_layers}")
        if problems:
            raise ConfigError(problems)

    @property
    def grid(self) -> FrameGrid:
        return FrameGrid(self.model.hop_samples, self.model.window_samples)


def clustered(config: Config) -> MfccFeatures:
    """Return the features whose clusters this iteration predicts."""
    return MfccFeatures(config.features.convention)


def layers_of(directory: Path, layers: list[int], *, ranks: Ranks) -> list[HiddenFeatures]:
    """Return layers of the newest checkpoint of a run of this recipe."""
    run = TrainedRun(directory, "hubert_iter1", str(directory))
    model = run.model(HubertConfig, HubertPretraining, ranks=ranks)
    return layers_of_run(run, model.hubert, layers, checkpoint=weights_hash(model))
