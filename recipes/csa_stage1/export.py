"""A trained model for use elsewhere: encoders as Hugging Face has them, and in safetensors what stands on them.

    python -m recipes.csa_stage1.export --run runs/csa_stage1 models/csa_stage1

models/csa_stage1/
    card.json            where it comes from, the configuration of the model, how audio and text go in
    heads.safetensors    pooling of the speech, projections, log_scale, bias
    speech_encoder/      for AutoModel.from_pretrained (Whisper's: WhisperEncoder); of kind lmu: our own tensors
    text_encoder/        for AutoModel and AutoTokenizer, where it was trained along; of kind own: our own tensors

With a GroupNorm in the first convolution (wav2vec 2.0 base) Hugging Face's features of a clip alone are ours; in a
padded batch theirs change.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from core.config.load import load
from core.distributed import Ranks, joined
from core.job.errors import exit_on_error
from core.losses.contrastive import MAX_LOG_SCALE
from core.models.csa import CsaModel, HubertSpeech
from core.models.hubert.names import save_huggingface
from core.models.lmu.speech import LmuSpeech
from core.models.pretrained.speech import WhisperEncoder
from core.models.pretrained.text import PretrainedText
from core.rundir.files import CONFIG, VOCABULARY
from core.rundir.whole_files import write_json
from core.text.tokenization import open_tokenizer
from core.text.vocabulary import CharacterVocabulary
from core.train.trained import load_trained
from recipes.csa_stage1.assembly import Config, open_frozen_text

CARD, HEADS, WEIGHTS = "card.json", "heads.safetensors", "model.safetensors"
SPEECH, TEXT = "speech_encoder", "text_encoder"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("export", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path, metavar="FOLDER", help="is made anew")
    parser.add_argument("--run", required=True, type=Path, help="directory of a trained run")
    arguments = parser.parse_args(argv)
    with joined(device="cpu") as ranks, exit_on_error():
        export(arguments.run, arguments.output, ranks=ranks)
    print(f"exported to {arguments.output}")
    return 0


def export(run: Path, output: Path, *, ranks: Ranks) -> None:
    """`output` is there whole or not at all. ValueError where it is there before, and for a run without a model."""
    if output.exists():
        raise ValueError(f"{output} exists; name another folder, or remove it")
    if not (run / CONFIG).exists():
        raise ValueError(f"--run {run}: there is no {run / CONFIG}; name the directory of a trained run")
    config = load(Config, run / CONFIG)
    model, step = open_model(config, run, ranks=ranks)
    unfinished = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _save_speech(model, unfinished / SPEECH, config)
    _save_text(model, unfinished / TEXT, config, run=run)
    heads = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith((SPEECH, TEXT))}
    _save_tensors(heads, unfinished / HEADS)
    write_json(unfinished / CARD, _card(model, config, run=run, step=step))
    unfinished.rename(output)


def open_model(config: Config, run: Path, *, ranks: Ranks) -> tuple[CsaModel, int]:
    """A run's newest weights, and of which step they are. The manifests need not be there."""
    kept = run / VOCABULARY
    vocabulary = CharacterVocabulary.load(kept) if config.data.tokenizer.kind == "characters" else None
    tokenizer = open_tokenizer(config.data.tokenizer, vocabulary=vocabulary)
    frozen = open_frozen_text(config, ranks=ranks)
    text_dim = None if frozen is None else frozen.output_dim
    model = CsaModel(config.model, text_dim=text_dim, vocab_size=tokenizer.vocab_size)
    return model, load_trained(model, run, ranks=ranks)


def _save_speech(model: CsaModel, directory: Path, config: Config) -> None:
    encoder = model.speech_encoder
    if isinstance(encoder, LmuSpeech):
        _save_own(encoder, directory, config.model.speech)
        return
    if isinstance(encoder, HubertSpeech):
        save_huggingface(encoder.model, directory)
    else:
        save_form(encoder.model, directory)
    _preprocessor(encoder, normalize=config.data.pairs.normalize).save_pretrained(directory)


def _save_text(model: CsaModel, directory: Path, config: Config, *, run: Path) -> None:
    """With its tokenizer; nothing of a frozen encoder, which is where `model.text.path` says."""
    encoder = model.text_encoder
    if encoder is None:
        return
    if isinstance(encoder, PretrainedText):
        save_form(encoder.model, directory)
    else:
        _save_own(encoder, directory, config.model.text)
    tokenizer = config.data.tokenizer
    if tokenizer.kind == "huggingface":
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(tokenizer.directory, local_files_only=True).save_pretrained(directory)
    elif tokenizer.kind == "characters":
        shutil.copyfile(run / VOCABULARY, directory / VOCABULARY)


def save_form(model: Any, directory: Path) -> None:
    """Of a model of Hugging Face. ValueError where what is left of it is none."""
    norms = [getattr(module, name, None) for module in model.modules() for name in ("layer_norm", "final_norm")]
    if any(isinstance(norm, nn.Identity) for norm in norms):
        raise ValueError(
            f"{type(model).__name__} with hidden_state below the last has lost the norm after its layers: Hugging Face "
            "has no such model; export one that was trained with hidden_state=-1"
        )
    model.save_pretrained(directory)


def _save_own(encoder: nn.Module, directory: Path, config: Any) -> None:
    directory.mkdir()
    _save_tensors(encoder.state_dict(), directory / WEIGHTS)
    write_json(directory / "config.json", asdict(config))


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _preprocessor(encoder: nn.Module, *, normalize: bool) -> Any:
    """What makes of audio that which the encoder was trained on."""
    from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

    if isinstance(encoder, WhisperEncoder):
        return WhisperFeatureExtractor(feature_size=encoder.model.config.num_mel_bins)
    return Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True)


def _card(model: CsaModel, config: Config, *, run: Path, step: int) -> dict[str, Any]:
    """The sections of the configuration keep their names and keys."""
    return {
        "run": run.absolute().name,
        "step": step,
        "scale": float(model.log_scale.clamp(max=MAX_LOG_SCALE).exp()),
        "pairs": asdict(config.data.pairs),
        "tokenizer": asdict(config.data.tokenizer),
        "model": asdict(config.model),
    }


if __name__ == "__main__":
    sys.exit(main())
