"""What train and prepare share: the configuration, and what is clustered here: a layer of the model before."""

from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from core.config.schema import section
from core.distributed import Ranks
from core.losses.masked_prediction import MaskedPredictionConfig
from core.models.hubert.config import HubertConfig
from core.models.hubert.model import HubertPretraining
from core.samplers.settings import ShapedPlanConfig
from core.train.config import TrainingConfig
from core.train.trained import TrainedRun, weights_hash
from core.units.frame_features import HiddenFeatures, layers_of_run
from core.units.frame_labels import FrameGrid
from core.units.labelled_speech import LabelledSpeechConfig
from core.units.labelling import LabellingConfig
from core.units.unit_quality import QualityConfig

DEFAULT_CONFIG = Path(__file__).parent / "config.yaml"
RECIPES = "hubert_iter1 or hubert_iter2"  # whose runs have layers to cluster


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
class Config(TrainingConfig):
    """`features` and `labelling`: how prepare makes labels; `quality`: which layers train compares at its end."""

    EQUAL: ClassVar = (
        *TrainingConfig.EQUAL,
        ("labelling.kmeans.num_clusters", "model.num_classes"),
        ("plan.max_cut_s", "data.crop.max_s"),
    )

    data: LabelledSpeechConfig
    features: FeatureConfig
    labelling: LabellingConfig
    plan: ShapedPlanConfig
    model: HubertConfig
    quality: QualityConfig
    loss: MaskedPredictionConfig = field(default_factory=MaskedPredictionConfig)

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.plan.over_budget != "crop":
            problems.append(f"plan.over_budget={self.plan.over_budget} must be crop: longer clips give a part of them")
        if max(self.quality.layers) > self.model.num_layers:
            problems.append(f"quality.layers={self.quality.layers} must be at most {self.model.num_layers}")
        return problems

    @property
    def grid(self) -> FrameGrid:
        return FrameGrid(self.model.hop_samples, self.model.window_samples)


def clustered(config: Config, *, ranks: Ranks) -> HiddenFeatures:
    """Return the features whose clusters this iteration predicts. ValueError where their weights are others."""
    wanted = config.features
    if wanted.run is None:
        raise ValueError("features.run=null: name the trained run whose layer is to be clustered")
    run = TrainedRun.named(wanted.run, key="features.run", recipes=RECIPES)
    (features,) = layers_of(run, [wanted.layer], ranks=ranks)
    if wanted.checkpoint not in (None, features.checkpoint):
        raise ValueError(
            f"features.checkpoint={wanted.checkpoint}: the newest weights of {run.directory} are {features.checkpoint}"
        )
    if features.grid != config.grid:
        raise ValueError(f"{run.directory} has frames of {features.grid}, model.conv_layers of {config.grid}")
    return replace(features, smooth_frames=wanted.smooth_frames)


def layers_of(run: TrainedRun, layers: list[int], *, ranks: Ranks) -> list[HiddenFeatures]:
    """Return layers of the newest checkpoint of a run of this or another iteration."""
    model = run.model(HubertConfig, HubertPretraining, ranks=ranks)
    return layers_of_run(run, model.hubert, layers, checkpoint=weights_hash(model))
