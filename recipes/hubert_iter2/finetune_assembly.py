"""What finetune and evaluate share: the configuration, the model, and the pretrained weights that it begins with."""

from dataclasses import field
from pathlib import Path

from core.config.schema import section
from core.distributed import Ranks
from core.models.hubert.config import OF_PRETRAINING, HubertConfig, HubertEncoderConfig
from core.models.hubert.model import HubertCTC, HubertPretraining
from core.recognition.recognize import DecodeConfig
from core.recognition.waveform_asr import WaveformAsrConfig
from core.samplers.plan import PlanConfig
from core.seeding import seed_everything
from core.train.settings import TrainingConfig
from core.train.trained import PretrainedConfig, TrainedRun, load_weights_of_run
from core.units.masked_speech import CropConfig
from recipes.hubert_iter2.assembly import RECIPES

DEFAULT_CONFIG = Path(__file__).parent / "finetune.yaml"


@section
class Config(TrainingConfig):
    """`pretrained: null` begins with random weights, to compare with."""

    pretrained: PretrainedConfig | None
    data: WaveformAsrConfig
    plan: PlanConfig
    model: HubertEncoderConfig
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.plan.over_budget == "crop":
            problems.append("plan.over_budget=crop would cut words off their audio; use skip, alone or error")
        if self.data.channel_mask is not None and self.data.channel_mask.length >= self.model.dim:
            problems.append(
                f"data.channel_mask.length={self.data.channel_mask.length} must be below model.dim={self.model.dim}"
            )
        return problems


def build_model(config: Config, *, vocab_size: int, seed: int) -> HubertCTC:
    """Build the model: the same initial parameters for the same seed, on any number of ranks."""
    seed_everything(seed, "model")
    return HubertCTC(config.model, vocab_size=vocab_size)


def load_initial_weights(model: HubertCTC, config: PretrainedConfig, *, normalize: bool, ranks: Ranks) -> None:
    """Put the encoder of a pretrained run into `model`. ValueError where it is another model, or heard other audio."""
    run = TrainedRun.named(config.run, key="pretrained.run", recipes=RECIPES)
    there = run.section(HubertConfig, "model")
    run.refuse_differences(there, model.config, key="model", may_differ=OF_PRETRAINING)
    heard = run.section(CropConfig, "data.crop").normalize
    if heard != normalize:
        raise ValueError(f"data.normalize={normalize} must be {heard}, as {run.setting} heard audio")
    whole = HubertPretraining(there)
    load_weights_of_run(model.hubert, run, whole, "hubert", checkpoint=config.checkpoint, ranks=ranks)
