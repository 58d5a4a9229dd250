"""What train and prepare share: the configuration, and what is clustered here: a layer of the model before."""

from dataclasses import field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

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
from core.rundir.environment import runs_root
from core.samplers.shapes import ShapedPlanConfig
from core.train.settings import TrainConfig
from core.train.trained import load_trained, read_section, weights_hash
from core.units.frame_features import HiddenFeatures
from core.units.frame_labels import FrameGrid
from core.units.labelled_speech import LabelledSpeechConfig
from core.units.labelling import LabellingConfig
from core.units.unit_quality import QualityConfig

DEFAULT_CONFIG = Path(__file__).parent / "config.yaml"


@section
class FeatureConfig:
    """What is clustered: `layer` (from 1) of a trained run, its name under `runs/` or its directory. `checkpoint`: the
    hash of its weights to insist on, as labels and log say it; null takes the newest. `smooth_frames`, odd: clusters
    are those of a weighted mean of so many frames, for models that heard too little speech to learn by themselves that
    phones last; 1: of each frame, as published. `run: null`: train needs no more than the labels."""

    run: str | None = None
    layer: Annotated[int, Field(ge=1)]
    checkpoint: str | None = None
    smooth_frames: Annotated[int, Field(ge=1)] = 1

    def __post_init__(self) -> None:
        if self.smooth_frames % 2 == 0:
            raise ValueError(f"smooth_frames={self.smooth_frames} must be odd: as many frames before as after")


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


def clustered(config: Config, *, ranks: Ranks) -> HiddenFeatures:
    """The features whose clusters this iteration predicts. ValueError where they are not of the weights asked for."""
    wanted = config.features
    if wanted.run is None:
        raise ValueError("features.run=null: name the trained run whose layer is to be clustered")
    directory = runs_root() / wanted.run
    (features,) = layers_of(directory, [wanted.layer], ranks=ranks)
    if wanted.checkpoint not in (None, features.checkpoint):
        raise ValueError(
            f"features.checkpoint={wanted.checkpoint}: the newest weights of {directory} are {features.checkpoint}"
        )
    if features.grid != config.grid:
        raise ValueError(f"{directory} has frames of {features.grid}, model.conv_layers of {config.grid}")
    return replace(features, smooth_frames=wanted.smooth_frames)


def trained_model(directory: Path, *, ranks: Ranks) -> HubertPretraining:
    """The newest checkpoint of a run of this or another iteration. ValueError where it is none."""
    found = read_section(directory, "model")
    try:
        model = HubertPretraining(HubertConfig(**found))
    except (TypeError, ValueError):
        raise ValueError(f"{directory} is not a run of HuBERT: its model has the keys {', '.join(found)}") from None
    load_trained(model, directory, ranks=ranks)
    return model


def layers_of(directory: Path, layers: list[int], *, ranks: Ranks) -> list[HiddenFeatures]:
    """Layers of the newest checkpoint of a run of this or another iteration."""
    model = trained_model(directory, ranks=ranks)
    grid = FrameGrid(model.config.hop_samples, model.config.window_samples)
    normalize, found = read_section(directory, "data")["crop"]["normalize"], weights_hash(model)
    return [
        HiddenFeatures(model.hubert, layer, grid, dim=model.config.dim, checkpoint=found, normalize=normalize)
        for layer in layers
    ]
