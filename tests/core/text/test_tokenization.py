"""Token ids: those of the libraries, for texts of a batch of any company, in any process."""

import pickle
from pathlib import Path

import pytest

from core.text.tokenization import TokenizerConfig, open_tokenizer
from core.text.vocabulary import CharacterVocabulary

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "press", "one", "##s", "the", "pound", "key", "."]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as a downloaded BERT has it, whose tokenizer.json asks for padding and truncation."""
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    made = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    made.backend_tokenizer.enable_padding(length=16)
    made.backend_tokenizer.enable_truncation(4)
    made.save_pretrained(folder)
    return folder


def test_a_huggingface_directory_gives_the_models_ids(bert: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = open_tokenizer(TokenizerConfig(directory=str(bert)))
    text = "Press the ones."
    assert tokenizer.encode(text) == [2, 5, 8, 6, 7, 11, 3], "neither cut nor padded"
    reference = AutoTokenizer.from_pretrained(bert)
    assert tokenizer.encode(text) == reference(text, truncation=False, padding=False)["input_ids"]
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (0, len(WORDS))
    assert tokenizer.encode("") == [2, 3]
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == tokenizer.encode(text)


def test_characters_and_bytes() -> None:
    vocabulary = CharacterVocabulary.of_texts(["press one"])
    tokenizer = open_tokenizer(TokenizerConfig(kind="characters"), vocabulary=vocabulary)
    assert vocabulary.decode(tokenizer.encode("one?")) == "one"
    assert tokenizer.encode("?") == [tokenizer.pad_id] and tokenizer.vocab_size == len(vocabulary)
    text = "a\u0436\u00ff"
    tokenizer = open_tokenizer(TokenizerConfig(kind="bytes"))
    assert bytes(one - 1 for one in tokenizer.encode(text)).decode() == text
    assert max(tokenizer.encode("\u00ff")) < tokenizer.vocab_size == 257
    assert tokenizer.encode("") == [tokenizer.pad_id]


def test_what_is_no_tokenizer_is_named(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is neither a folder nor cached here"):
        open_tokenizer(TokenizerConfig(directory=str(tmp_path / "missing")))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"has no vocabulary"):
        open_tokenizer(TokenizerConfig(directory=str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"has no tokenizer that can be read"):
        open_tokenizer(TokenizerConfig(directory=str(tmp_path)))
    with pytest.raises(ValueError, match="kind=huggingface needs a directory"):
        TokenizerConfig()
    with pytest.raises(ValueError, match="kind=bytes needs no directory"):
        TokenizerConfig(kind="bytes", directory="x")
