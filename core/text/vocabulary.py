"""The characters of a character model and their ids: targets from text, and text from ids.

The space is a symbol like any other: without it every transcript is one word and WER is the sentence error rate.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from core.rundir.whole_files import write_whole

BLANK = "<blank>"
SPACE = "<space>"  # how the vocabulary file spells " ", so that no editor or strip() can lose it
BLANK_ID = 0


class CharacterVocabulary:
    """Characters and their ids: the CTC blank is id 0, the symbols follow in the order given."""

    def __init__(self, symbols: Sequence[str]) -> None:
        bad = [symbol for symbol in symbols if len(symbol) != 1 or (symbol.isspace() and symbol != " ")]
        if bad:
            raise ValueError(f"vocabulary symbols must be single characters, the only white space ' '; got {bad}")
        if len(set(symbols)) != len(symbols):
            raise ValueError(f"vocabulary symbols must differ from each other; got {list(symbols)}")
        self.symbols = tuple(symbols)
        self.ids = {symbol: BLANK_ID + 1 + position for position, symbol in enumerate(symbols)}

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> "CharacterVocabulary":
        """Collect every character that occurs in the texts, and the space, sorted."""
        symbols = {" "}
        for text in texts:
            symbols.update(text)
        return cls(sorted(symbols))

    def __len__(self) -> int:
        return 1 + len(self.symbols)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharacterVocabulary) and self.symbols == other.symbols

    def __hash__(self) -> int:
        return hash(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Return the ids of the characters of `text`; ValueError naming those that the vocabulary lacks."""
        try:
            return [self.ids[character] for character in text]
        except KeyError:
            unknown = sorted(set(text) - set(self.symbols))
            raise ValueError(
                f"characters {unknown} of {text!r} are not in the vocabulary {''.join(self.symbols)!r}; "
                "normalize the text, or use encode_known, which counts them"
            ) from None

    def encode_known(self, text: str) -> tuple[list[int], int]:
        """Return the ids of known characters and the number of unknown ones, for a caller that reports it."""
        ids = [self.ids[character] for character in text if character in self.ids]
        return ids, len(text) - len(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids without blanks; ValueError for the blank or an id out of range."""
        ids = list(ids)
        if any(not BLANK_ID < one <= len(self.symbols) for one in ids):
            raise ValueError(f"ids must be in 1..{len(self.symbols)} (0 is the blank: collapse the path first): {ids}")
        return "".join(self.symbols[one - 1] for one in ids)

    def save(self, path: Path) -> None:
        """Write one symbol a line, line number = id; the blank and the space are spelled out."""
        lines = [BLANK, *(SPACE if symbol == " " else symbol for symbol in self.symbols)]
        write_whole(path, "\n".join(lines) + "\n")

    @classmethod
    def load(cls, path: Path) -> "CharacterVocabulary":
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if lines[0] != BLANK:
            raise ValueError(f"{path}:1: got {lines[0]!r}, expected {BLANK!r}: this is no vocabulary file")
        symbols = [" " if line == SPACE else line for line in lines[1:]]
        for number, symbol in enumerate(symbols, start=2):
            if len(symbol) != 1:
                raise ValueError(f"{path}:{number}: got {symbol!r}, expected one character or {SPACE}")
        return cls(symbols)
