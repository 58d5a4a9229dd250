"""What train, score and export share: the configuration, the model, and the weights that its speech begins with."""

import logging
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from core.config.schema import section
from core.distributed import Ranks
from core.losses.contrastive import Kind, PairEmbeddings, contrastive_loss
from core.losses.grad_cache import grad_cache_loss
from core.models.csa import CsaConfig, CsaModel, HubertSpeechConfig
from core.models.hubert.config import OF_PRETRAINING, HubertConfig
from core.models.hubert.model import Hubert, HubertPretraining
from core.models.lmu.recognizer import LmuCtcConfig, build_lmu_ctc
from core.models.lmu.speech import LmuSpeech, LmuSpeechConfig
from core.models.pretrained.speech import PretrainedSpeechConfig
from core.models.pretrained.text import FrozenText, PretrainedTextConfig
from core.parallel.preparation import COMPUTE_DTYPE
from core.parallel.settings import ParallelConfig, resolve_precision
from core.rundir.files import FEATURE_STATS, VOCABULARY
from core.samplers.plan import PlanConfig
from core.seeding import seed_everything
from core.speech.features import FeatureConfig, FeatureStats
from core.text.vocabulary import CharacterVocabulary
from core.train.config import TrainingConfig
from core.train.loop import Loss
from core.train.trained import PretrainedConfig, TrainedRun, load_weights_of_run
from recipes.csa_stage1.csa_names import import_predecessor
from recipes.csa_stage1.paired_corpus import PairedCorpus, PairedCorpusConfig, Split

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = Path(__file__).parent / "config.yaml"


@section
class ContrastConfig:
    """The loss. `kind`: see core/losses/contrastive.py. `leave_out_equal_texts`: another pair with the same words is no
    wrong answer. `chunk_pairs`: GradCache: a rank's pairs go through the model so many at a time, with the gradient of
    all of them; null: all at once."""

    kind: Kind = "infonce"
    leave_out_equal_texts: bool = True
    chunk_pairs: Annotated[int, Field(ge=1)] | None = None


@section
class GalleryConfig:
    """Retrieval among all held-out pairs. `matched`: each query also among so many others, those nearest in length.
    `shown`: clips of which, and of whose texts, so many nearest `neighbours` are kept for the report."""

    matched: Annotated[int, Field(ge=1)] = 19
    shown: Annotated[int, Field(ge=0)] = 20
    neighbours: Annotated[int, Field(ge=1)] = 3


@section
class Config(TrainingConfig):
    """`predecessor`: a checkpoint of CSRef 2.0 that all begins with (recipes/csa_stage1/csa_names.py); null: none.
    `pretrained`: the run that the speech encoder begins with, of lmu_gigaspeech for model.speech.kind=lmu, of
    hubert_iter1 or hubert_iter2 for hubert; null: at random, or as the directory of a pretrained encoder has it."""

    EQUAL: ClassVar = (*TrainingConfig.EQUAL, ("plan.max_cut_s", "data.crop.max_s"))

    pretrained: PretrainedConfig | None = None
    predecessor: str | None = None
    data: PairedCorpusConfig
    plan: PlanConfig
    model: CsaConfig
    loss: ContrastConfig = field(default_factory=ContrastConfig)
    gallery: GalleryConfig = field(default_factory=GalleryConfig)
    parallel: ParallelConfig = field(default_factory=lambda: ParallelConfig(strategy="deepspeed"))

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.data.crop is not None and self.plan.over_budget != "crop":
            problems.append(f"plan.over_budget={self.plan.over_budget} must be crop: of longer clips a part is heard")
        if self.data.crop is None and self.plan.over_budget == "crop":
            problems.append(
                "plan.over_budget=crop needs data.crop: whole clips lose no words; use skip, alone or error"
            )
        if self.loss.kind == "siglip" and self.model.bias_init is None:
            problems.append("loss.kind=siglip needs model.bias_init, such as -10.0")
        kind, has_run = self.model.speech.kind, self.pretrained is not None
        if has_run and kind == "pretrained":
            problems.append("pretrained must be null with model.speech.kind=pretrained: its directory has the weights")
        if self.predecessor is not None and kind != "pretrained":
            problems.append(f"predecessor must be null with model.speech.kind={kind}: it has encoders of Hugging Face")
        mixes = isinstance(self.model.speech, PretrainedSpeechConfig) and self.model.speech.fused_states
        if self.loss.chunk_pairs is not None and mixes:
            problems.append("loss.chunk_pairs must be null with model.speech.fused_states: its norm is over the batch")
        if kind == "lmu" and self.data.pairs.normalize:
            problems.append("data.pairs.normalize must be false with model.speech.kind=lmu: it hears audio as recorded")
        speech = self.model.speech
        if isinstance(speech, LmuSpeechConfig) and speech.features.normalize == "corpus" and not has_run:
            problems.append(
                "model.speech.features.normalize=corpus needs pretrained, whose statistics it takes; or set utterance"
            )
        zero, layer_drop = self.parallel.zero.stage, _layer_drop(self.model)
        if self.parallel.strategy == "deepspeed" and zero and layer_drop:
            problems.append(
                f"the layer_drop={layer_drop} of model.speech must be 0 with parallel.zero.stage={zero}: ranks pass "
                "over different layers, which ZeRO takes for the same ones; use stage 0, ddp or fsdp2"
            )
        if isinstance(self.model.text, PretrainedTextConfig) and self.data.tokenizer.kind != "huggingface":
            problems.append(
                f"data.tokenizer.kind={self.data.tokenizer.kind} must be huggingface with model.text.kind=pretrained"
            )
        return problems


def _layer_drop(model: CsaConfig) -> float:
    if isinstance(model.speech, HubertSpeechConfig):
        return model.speech.hubert.layer_drop
    return 0.0 if isinstance(model.speech, LmuSpeechConfig) else model.speech.layer_drop


def open_corpus(config: Config, directory: Path, *, ranks: Ranks) -> PairedCorpus:
    """ValueError for what is missing, also in what is only evaluated in the end."""
    corpus = PairedCorpus.open(config.data, directory, ranks=ranks)
    for split in get_args(Split):
        corpus.evaluation_plan(split, config.plan, seed=config.run.seed)
    return corpus


def open_frozen_text(config: Config, *, ranks: Ranks) -> FrozenText | None:
    """The text encoder that stands outside of the trained model, where there is one. All ranks together."""
    text = config.model.text
    if not (isinstance(text, PretrainedTextConfig) and text.frozen):
        return None
    precision = resolve_precision(config.parallel.precision, ranks)
    return FrozenText(text, device=ranks.device, dtype=COMPUTE_DTYPE.get(precision))


def build_model(config: Config, corpus: PairedCorpus, frozen: FrozenText | None) -> CsaModel:
    """The same initial parameters for the same seed, on any number of ranks."""
    seed_everything(config.run.seed, "model")
    text_dim = None if frozen is None else frozen.output_dim
    return CsaModel(config.model, text_dim=text_dim, vocab_size=corpus.tokenizer.vocab_size)


def load_initial_weights(model: CsaModel, config: Config, *, ranks: Ranks) -> None:
    """Put the weights that `config` names into the model. ValueError where they are of another one."""
    if config.predecessor is not None:
        report = import_predecessor(model, Path(config.predecessor))
        logger.info("the model begins with %s: %s", config.predecessor, report)
    if config.pretrained is None:
        return
    if isinstance(config.model.speech, LmuSpeechConfig):
        _load_lmu(model.speech_encoder, config.model.speech, config.pretrained, ranks=ranks)
    else:
        assert isinstance(config.model.speech, HubertSpeechConfig)
        _load_hubert(model.speech_encoder.model, config.model.speech.hubert, config.pretrained, ranks=ranks)


def _load_hubert(encoder: Hubert, config: HubertConfig, pretrained: PretrainedConfig, *, ranks: Ranks) -> None:
    run = TrainedRun.named(pretrained.run, key="pretrained.run", recipes="hubert_iter1 or hubert_iter2")
    there = run.section(HubertConfig, "model")
    run.refuse_differences(there, config, key="model.speech.hubert", may_differ=OF_PRETRAINING)
    whole = HubertPretraining(there)
    load_weights_of_run(encoder, run, whole, "hubert", checkpoint=pretrained.checkpoint, ranks=ranks)


def _load_lmu(speech: LmuSpeech, config: LmuSpeechConfig, pretrained: PretrainedConfig, *, ranks: Ranks) -> None:
    run = TrainedRun.named(pretrained.run, key="pretrained.run", recipes="lmu_gigaspeech")
    there, features = run.section(LmuCtcConfig, "model"), run.section(FeatureConfig, "data.features")
    run.refuse_differences(there.encoder, config.encoder, key="model.speech.encoder")
    run.refuse_differences(features, config.features, key="model.speech.features")
    whole = build_lmu_ctc(there, vocab_size=len(CharacterVocabulary.load(run.directory / VOCABULARY)))
    load_weights_of_run(speech.encoder, run, whole, "encoder", checkpoint=pretrained.checkpoint, ranks=ranks)
    if features.normalize == "corpus":
        speech.take_stats(FeatureStats.load(run.directory / FEATURE_STATS))


def attention_of(model: CsaModel, frozen: FrozenText | None) -> dict[str, str | None]:
    """How the encoders of Hugging Face compute attention, as they have chosen; None for our own."""
    text = model.text_encoder if frozen is None else frozen.encoder
    models = {"speech": getattr(model.speech_encoder, "model", None), "text": getattr(text, "model", None)}
    return {
        f"{side}_attention": getattr(getattr(encoder, "config", None), "_attn_implementation", None)
        for side, encoder in models.items()
    }


def text_of(batch: Any, frozen: FrozenText | None) -> dict[str, Tensor]:
    """What the model takes of a batch's texts: their tokens, or what a frozen encoder made of them."""
    tokens = {"token_ids": batch.token_ids, "num_tokens": batch.num_tokens}
    return tokens if frozen is None else {"text_features": frozen.features(**tokens)}


def embed(model: nn.Module, batch: Any, text: dict[str, Tensor], rows: slice = slice(None)) -> PairEmbeddings:
    """Some pairs of a batch as the model sees them."""
    of_rows = {name: values[rows] for name, values in text.items()}
    found: PairEmbeddings = model(batch.audio[rows], batch.num_samples[rows], **of_rows)
    return found


def contrast(
    model: nn.Module, batch: Any, *, config: ContrastConfig, frozen: FrozenText | None, group: dist.ProcessGroup | None
) -> Loss:
    """The loss of a micro-batch, against those of all ranks; in parts with GradCache."""
    loss = partial(
        contrastive_loss,
        text_keys=batch.text_keys if config.leave_out_equal_texts else None,
        num_targets=batch.num_targets,
        group=group,
        kind=config.kind,
    )
    if config.chunk_pairs is None:
        return loss(embed(model, batch, text_of(batch, frozen)))
    encode = partial(embed, model, batch, text_of(batch, frozen))
    return grad_cache_loss(encode, loss, num_rows=len(batch.audio), chunk_rows=config.chunk_pairs, group=group)
