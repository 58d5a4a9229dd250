"""Transcripts made into spoken words, as a manifest is prepared; and words made out of numbers and symbols."""

import re
import unicodedata
from typing import Literal

GARBAGE_TAGS = frozenset({"SIL", "MUSIC", "NOISE", "OTHER"})  # GigaSpeech: the utterance holds no usable speech
PUNCTUATION_TAGS = {"COMMA": ",", "PERIOD": ".", "QUESTIONMARK": "?", "EXCLAMATIONPOINT": "!"}

# What GigaSpeech's own scoring leaves out of reference and hypothesis.
FILLERS = frozenset("uh uhh um eh mm hm ah huh ha er oof hee ach eee ew".split())


def words(text: str) -> list[str]:
    return text.split()


def normalize_transcript(
    text: str,
    *,
    style: Literal["lower", "upper"] = "lower",
    language: str = "en",
    keep_punctuation: bool = False,
) -> str | None:
    """Return the spoken words of a text, single-spaced: letters, apostrophes, spaces; None where nothing is spoken.

    None is a garbage utterance: it carries a GigaSpeech garbage tag (<SIL>, <MUSIC>, <NOISE>, <OTHER>) or only an
    annotator's note such as "[ascending tones]" or "(2 seconds of silence)". Notes inside a text are removed.
    GigaSpeech's punctuation tags are removed, or with `keep_punctuation` they and the marks , . ? ! end their word.
    Hyphens separate words, curly quotes become straight ones, quotation marks go.
    English ("en", "English") also has its numbers and symbols spelled as they are read aloud and its accents stripped;
    any other language keeps its letters, accents and digits. Letters are never dropped: the vocabulary decides what
    it can spell.
    """
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    tags = set(_TAG.findall(text))
    if tags & GARBAGE_TAGS:
        return None
    text = _TAG.sub(lambda tag: PUNCTUATION_TAGS.get(tag[1], "") + " ", text)
    text = _NOTE.sub(" ", text)
    if language.lower() in ("en", "english"):
        text = _spoken_english(text)
    text = "".join(one for one in text if not unicodedata.combining(one))
    text = _QUOTED.sub(r"\1", text)
    characters = []
    for position, one in enumerate(text):
        if one == "'":
            kept = any(other.isalnum() for other in text[max(position - 1, 0) : position + 2])
        else:
            kept = one.isalnum() or (keep_punctuation and one in ",.?!")
        characters.append(one if kept else " ")
    text = "".join(characters)
    if keep_punctuation:
        text = _PUNCTUATION.sub(lambda marks: marks[0].strip()[0] + " ", text)
        text = text.lstrip(",.?! ")
    if not any(one.isalnum() for one in text):
        return None
    text = " ".join(text.split())
    return text.upper() if style == "upper" else text.lower()


def without_fillers(text: str) -> str:
    """Remove the hesitations that GigaSpeech's scoring ignores; both sides of a comparison need it."""
    return " ".join(word for word in words(text) if word.lower() not in FILLERS)


def spell_number(number: int) -> str:
    """Return the cardinal words of 0 <= number < 10**12: 842 -> "eight hundred forty two"."""
    if not 0 <= number < 10**12:
        raise ValueError(f"number={number} must be in 0..{10**12 - 1}")
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return " ".join([_TENS[number // 10], *([_SMALL[number % 10]] if number % 10 else [])])
    size, name = next((size, name) for size, name in _SIZES if number >= size)
    rest = [spell_number(number % size)] if number % size else []
    return " ".join([spell_number(number // size), name, *rest])


_TAG = re.compile(r"<([A-Z_]+)>")
_NOTE = re.compile(r"\[[^]]*\]|<[^>]*>|\([^)]*\)")
_QUOTES = str.maketrans({mark: "'" for mark in "\u2018\u2019\u02bc\u2032`\u00b4"})
_QUOTED = re.compile(r"(?<!\w)'([^']+)'(?!\w)")  # quotation marks, not apostrophes: 'hello' but dogs', 'em
_PUNCTUATION = re.compile(r"\s*[,.?!](?:\s*[,.?!])*")

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
_SIZES = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_ORDINALS |= {"twelve": "twelfth"}

_SYMBOLS = {"*": "star", "#": "pound", "@": "at", "&": "and", "%": "percent", "+": "plus", "=": "equals"}
_TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor", "vs": "versus", "etc": "et cetera"}
_TITLE = re.compile(rf"\b({'|'.join(_TITLES)})\.", re.IGNORECASE)
_DOTTED_NAME = re.compile(r"(?<=\w)\.(?=[A-Za-z]{2})")  # www.asterisk.org, but neither "P.M." nor "end. Next"
_DOLLARS = re.compile(r"\$\s?(\d[\d,]*(?:\.\d+)?)")
_NUMBER = re.compile(r"(?<!\d)(\d{1,3}(?:,\d{3})+|\d+)(?:\.(\d+))?(st|nd|rd|th)?(?![A-Za-z]*\d)", re.IGNORECASE)
_TELEPHONE = re.compile(r"\b\d+(?:-\d+){2,}\b|\b1-\d{3}\b")
_ACRONYM = re.compile(r"\b[B-DF-HJ-NP-TV-XZ]{2,5}\b")  # no vowel: it cannot be said as a word


def _spoken_english(text: str) -> str:
    text = unicodedata.normalize("NFKD", text)
    text = _TITLE.sub(lambda title: _TITLES[title[1].lower()], text)
    text = _DOTTED_NAME.sub(" dot ", text)
    text = _DOLLARS.sub(r"\1 dollars", text)
    text = re.sub("|".join(map(re.escape, _SYMBOLS)), lambda symbol: f" {_SYMBOLS[symbol[0]]} ", text)
    if not text.isupper():  # in an all-capitals transcript capitals tell nothing
        text = _ACRONYM.sub(lambda name: " ".join(name[0]), text)
    text = _TELEPHONE.sub(lambda number: " ".join(map(_read_group, number[0].split("-"))), text)
    return _NUMBER.sub(lambda number: f" {_read_aloud(*number.groups())} ", text)


def _read_aloud(digits: str, decimals: str | None, ordinal: str | None) -> str:
    """Spell a number as it is said: cardinals to three digits or with commas, longer ones like a telephone number."""
    grouped = "," in digits
    digits = digits.replace(",", "")
    if decimals is not None:
        return f"{_cardinal(digits)} point {_digit_by_digit(decimals)}"
    if ordinal is not None:
        *head, last = _cardinal(digits).split()
        last = _ORDINALS.get(last) or (last.removesuffix("y") + "ie" if last.endswith("y") else last) + "th"
        return " ".join([*head, last])
    if digits.startswith("0") and len(digits) > 1:
        return _digit_by_digit(digits)
    if len(digits) <= 3 or grouped or digits.endswith("000"):
        return _cardinal(digits)
    if len(digits) == 4 and digits.endswith("00"):
        return f"{spell_number(int(digits[:2]))} hundred"
    return _digit_by_digit(digits)


def _read_group(digits: str) -> str:
    """Spell a part of a telephone number: 800 is eight hundred, 555 is five five five."""
    return _cardinal(digits) if digits.endswith("00") and not digits.startswith("0") else _digit_by_digit(digits)


def _cardinal(digits: str) -> str:
    return spell_number(int(digits)) if int(digits) < 10**12 else _digit_by_digit(digits)


def _digit_by_digit(digits: str) -> str:
    return " ".join(_SMALL[int(digit)] for digit in digits)
