"""Text as token ids for a text encoder: the tokenizer of a Hugging Face directory, our characters, or bytes.

Cheap enough for the loader's workers, and picklable, so that every way of starting them works.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from core.config.schema import section
from core.text.vocabulary import BLANK_ID, CharacterVocabulary

_BYTE_PAD = 0  # byte b is token b + 1
_ADVICE = "give the folder of a downloaded model, with its tokenizer.json"


@section
class TokenizerConfig:
    """The tokenizer. `huggingface`: of `directory`, a folder or a model's name in the local Hugging Face cache.
    `characters`: those of the training texts. Texts of more than `max_tokens` are bad samples.
    """

    kind: Literal["huggingface", "characters", "bytes"] = "huggingface"
    directory: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 512

    def __post_init__(self) -> None:
        if (self.kind == "huggingface") != (self.directory is not None):
            wanted = "a directory" if self.kind == "huggingface" else "no directory"
            raise ValueError(f"directory={self.directory}: kind={self.kind} needs {wanted}")


class Tokenizer(Protocol):
    """The interface of tokenizers; `encode` gives at least one token, also for no text."""

    @property
    def pad_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """A pretrained tokenizer, with the special tokens of its model ([CLS] ... [SEP])."""

    backend: Any  # tokenizers.Tokenizer
    pad_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        # one by one: it starts no threads, so a worker may be forked afterwards
        ids: list[int] = self.backend.encode(text).ids
        return ids or [self.pad_id]


@dataclass(frozen=True)
class CharacterTokenizer:
    """The vocabulary's characters; others are left out. The blank of CTC is the padding."""

    vocabulary: CharacterVocabulary
    pad_id: int = BLANK_ID

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        return self.vocabulary.encode_known(text)[0] or [self.pad_id]


@dataclass(frozen=True)
class ByteTokenizer:
    """The bytes of UTF-8."""

    pad_id: int = _BYTE_PAD
    vocab_size: int = 257

    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode()] or [self.pad_id]


def open_tokenizer(config: TokenizerConfig, *, vocabulary: CharacterVocabulary | None = None) -> Tokenizer:
    """Open what a configuration names, with a `vocabulary` for characters. ValueError without a fast tokenizer."""
    if config.kind == "characters":
        assert vocabulary is not None
        return CharacterTokenizer(vocabulary)
    if config.kind == "bytes":
        return ByteTokenizer()
    assert config.directory is not None
    return _open_huggingface(config.directory)


def _open_huggingface(directory: str) -> HuggingFaceTokenizer:
    from transformers import AutoTokenizer  # takes seconds to import

    where = f"tokenizer.directory={directory}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, use_fast=True)
    except Exception as error:  # whatever a library finds wrong with the files in a folder
        is_there = Path(directory).is_dir()
        problem = "has no tokenizer that can be read" if is_there else "is neither a folder nor cached here"
        raise ValueError(f"{where} {problem} ({_first_line(error)}); {_ADVICE}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{where}: {type(tokenizer).__name__} is not a fast one; {_ADVICE}")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # made up, where a config.json is all there is
        raise ValueError(f"{where} has no vocabulary; {_ADVICE}")
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{where}: {type(tokenizer).__name__} has no padding token")
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # a tokenizer.json may ask for both
    backend.no_truncation()
    return HuggingFaceTokenizer(backend, int(tokenizer.pad_token_id), len(tokenizer))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
