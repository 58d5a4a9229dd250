"""What train and prepare share: the configuration, and what is clustered in this iteration: MFCC."""

from dataclasses import field
from pathlib import Path
from typing import ClassVar

from core.config.schema import section
from core.distributed import Ranks
from core.losses.masked_prediction import MaskedPredictionConfig
from core.models.hubert.config import HubertConfig
from core.models.hubert.model import HubertPretraining
from core.samplers.settings import ShapedPlanConfig
from core.train.config import TrainingConfig
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


def clustered(config: Config) -> MfccFeatures:
    """Return the features whose clusters this iteration predicts."""
    return MfccFeatures(config.features.convention)


def layers_of(directory: Path, layers: list[int], *, ranks: Ranks) -> list[HiddenFeatures]:
    """Return layers of the newest checkpoint of a run of this recipe."""
    run = TrainedRun(directory, "hubert_iter1", str(directory))
    model = run.model(HubertConfig, HubertPretraining, ranks=ranks)
    return layers_of_run(run, model.hubert, layers, checkpoint=weights_hash(model))
