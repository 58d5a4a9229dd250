"""What train, score and export share: the configuration, the model, and the weights that its speech begins with."""

import logging
from dataclasses import asdict, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from core.checkpoint.store import CheckpointConfig
from core.config.load import load_section
from core.config.schema import ConfigError, section
from core.data.stream import LoaderConfig
from core.distributed import Ranks
from core.job.run import RunConfig
from core.job.stop import StopConfig
from core.losses.contrastive import Kind, PairEmbeddings, contrastive_loss
from core.losses.grad_cache import grad_cache_loss
from core.models.csa import CsaConfig, CsaModel, HubertSpeechConfig
from core.models.hubert.config import HubertConfig
from core.models.hubert.model import HubertPretraining
from core.models.lmu.recognizer import LmuCtcConfig, build_lmu_ctc
from core.models.lmu.speech import LmuSpeech, LmuSpeechConfig
from core.models.pretrained.speech import PretrainedSpeechConfig
from core.models.pretrained.text import FrozenText, PretrainedTextConfig
from core.optim.optim import OptimConfig
from core.parallel.preparation import COMPUTE_DTYPE
from core.parallel.settings import ParallelConfig, resolve_precision
from core.report.loggers import LoggerConfig
from core.rundir.environment import runs_root
from core.rundir.files import CONFIG, FEATURE_STATS, VOCABULARY
from core.samplers.plan import PlanConfig
from core.seeding import seed_everything
from core.speech.features import FeatureConfig, FeatureStats
from core.text.vocabulary import CharacterVocabulary
from core.train.loop import Loss
from core.train.settings import TrainConfig
from core.train.trained import PretrainedConfig, load_pretrained
from recipes.csa_stage1.csa_names import import_predecessor
from recipes.csa_stage1.paired_corpus import PairedCorpus, PairedCorpusConfig, Split

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = Path(__file__).parent / "config.yaml"
T = TypeVar("T")
_MAY_DIFFER = ("feature_grad_scale", "final_dim", "num_classes")


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
class Config:
    """`predecessor`: a checkpoint of CSRef 2.0 that all begins with (recipes/csa_stage1/csa_names.py); null: none.
    `pretrained`: the run that the speech encoder begins with, of lmu_gigaspeech for model.speech.kind=lmu, of
    hubert_iter1 or hubert_iter2 for hubert; null: at random, or as the directory of a pretrained encoder has it."""

    run: RunConfig
    pretrained: PretrainedConfig | None = None
    predecessor: str | None = None
    data: PairedCorpusConfig
    plan: PlanConfig
    model: CsaConfig
    train: TrainConfig
    optim: OptimConfig
    loss: ContrastConfig = field(default_factory=ContrastConfig)
    gallery: GalleryConfig = field(default_factory=GalleryConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    parallel: ParallelConfig = field(default_factory=lambda: ParallelConfig(strategy="deepspeed"))
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    loggers: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        problems = []
        total = getattr(self.optim.schedule, "total_steps", self.train.max_steps)
        if total != self.train.max_steps:
            problems.append(f"optim.schedule.total_steps={total} must equal train.max_steps={self.train.max_steps}")
        if self.data.crop is not None and self.plan.max_cut_s != self.data.crop.max_s:
            problems.append(f"plan.max_cut_s={self.plan.max_cut_s} must equal data.crop.max_s={self.data.crop.max_s}")
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
        if problems:
            raise ConfigError(problems)


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


def begin_with(model: CsaModel, config: Config, *, ranks: Ranks) -> None:
    """Put the weights that `config` names into the model. ValueError where they are of another one."""
    if config.predecessor is not None:
        report = import_predecessor(model, Path(config.predecessor))
        logger.info("the model begins with %s: %s", config.predecessor, report)
    if config.pretrained is None:
        return
    directory, speech = runs_root() / config.pretrained.run, config.model.speech
    if isinstance(speech, LmuSpeechConfig):
        found = _begin_with_lmu(model.speech_encoder, speech, config.pretrained, directory, ranks=ranks)
    else:
        assert isinstance(speech, HubertSpeechConfig)
        there = _section(HubertConfig, "model", config.pretrained, directory, recipes="hubert_iter1 or hubert_iter2")
        _refuse_differences(asdict(there), asdict(speech.hubert), key="model.speech.hubert", run=config.pretrained.run)
        hubert = HubertPretraining(there)
        found = load_pretrained(hubert, directory, config.pretrained, ranks=ranks)
        model.speech_encoder.model.load_state_dict(hubert.hubert.state_dict())
    logger.info("the speech side begins with the weights %s of %s", found, directory)


def _begin_with_lmu(
    speech: LmuSpeech, config: LmuSpeechConfig, pretrained: PretrainedConfig, directory: Path, *, ranks: Ranks
) -> str:
    there = _section(LmuCtcConfig, "model", pretrained, directory, recipes="lmu_gigaspeech")
    _refuse_differences(asdict(there.encoder), asdict(config.encoder), key="model.speech.encoder", run=pretrained.run)
    features = _section(FeatureConfig, "data.features", pretrained, directory, recipes="lmu_gigaspeech")
    _refuse_differences(asdict(features), asdict(config.features), key="model.speech.features", run=pretrained.run)
    vocabulary = CharacterVocabulary.load(directory / VOCABULARY)
    recognizer = build_lmu_ctc(there, vocab_size=len(vocabulary))
    found = load_pretrained(recognizer, directory, pretrained, ranks=ranks)
    speech.encoder.load_state_dict(recognizer.encoder.state_dict())  # type: ignore[attr-defined]  # it is a module
    if features.normalize == "corpus":
        speech.take_stats(FeatureStats.load(directory / FEATURE_STATS))
    return found


def _section(schema: type[T], name: str, pretrained: PretrainedConfig, directory: Path, *, recipes: str) -> T:
    """Of the configuration of the run to begin with. ValueError where it has none like that."""
    try:
        return load_section(schema, directory / CONFIG, name)
    except ConfigError as error:
        raise ValueError(f"pretrained.run={pretrained.run} is no run of {recipes}: {error.problems[0]}") from None


def _refuse_differences(there: dict[str, Any], here: dict[str, Any], *, key: str, run: str) -> None:
    """But for what regularizes, which is chosen anew, and for the head of HuBERT's pretraining."""
    names = [name for name in here if "drop" not in name and name not in _MAY_DIFFER]
    differing = [
        f"{key}.{name}: {there.get(name)} there, {here[name]} here" for name in names if there.get(name) != here[name]
    ]
    if differing:
        raise ValueError(f"pretrained.run={run} has another encoder: {'; '.join(differing)}")


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
