"""Transcripts become spoken words, words become ids and words again; no space and no letter is lost on the way."""

import json
import re
from pathlib import Path

import pytest

from core.text.normalization import normalize_transcript, spell_number, without_fillers
from core.text.vocabulary import BLANK_ID, CharacterVocabulary

DEMO = Path(__file__).parents[3] / "manifests" / "demo"


def test_round_trip_keeps_spaces(tmp_path: Path) -> None:
    text = "AS THEY'RE LEAVING A B"
    vocabulary = CharacterVocabulary.of_texts([text])
    vocabulary.save(tmp_path / "vocab.txt")
    loaded = CharacterVocabulary.load(tmp_path / "vocab.txt")
    assert loaded == vocabulary
    assert loaded.decode(loaded.encode(text)) == text
    assert len(loaded.encode("A B")) == 3


def test_stripping_the_lines_of_a_vocabulary_file_does_not_lose_the_space(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    CharacterVocabulary([" ", "a"]).save(path)
    path.write_text("\n".join(line.strip() for line in path.read_text().splitlines()))
    assert CharacterVocabulary.load(path).decode([2, 1, 2]) == "a a"


def test_blank_is_no_symbol() -> None:
    vocabulary = CharacterVocabulary(["a", " "])
    assert len(vocabulary) == 3
    assert BLANK_ID not in vocabulary.encode("a a")
    for ids in ([1, BLANK_ID], [3], [-1]):
        with pytest.raises(ValueError, match=r"ids must be in 1\.\.2"):
            vocabulary.decode(ids)


def test_unknown_characters_are_an_error_or_counted() -> None:
    vocabulary = CharacterVocabulary.of_texts(["abc"])
    with pytest.raises(ValueError, match=r"characters \['x', 'y'\] of 'a xyx'"):
        vocabulary.encode("a xyx")
    ids, num_unknown = vocabulary.encode_known("a xyx")
    assert (vocabulary.decode(ids), num_unknown) == ("a ", 3)


@pytest.mark.parametrize("symbols", [["ab"], [""], ["\n"], ["a", "a"]])
def test_vocabulary_refuses_bad_symbols(symbols: list[str]) -> None:
    with pytest.raises(ValueError, match="vocabulary symbols must"):
        CharacterVocabulary(symbols)


@pytest.mark.parametrize(
    "content, problem",
    [("a\nb\n", "vocab.txt:1: got 'a'"), ("<blank>\n\na\n", "vocab.txt:2: got ''"), ("<blank>\nab\n", "vocab.txt:2")],
)
def test_vocabulary_file_that_is_none(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(ValueError, match=re.escape(problem)):
        CharacterVocabulary.load(tmp_path / "vocab.txt")


GIGASPEECH = [  # transcript, without punctuation, with punctuation
    (
        "AS THEY'RE LEAVING <COMMA> CAN KASH PULL ZAHRA ASIDE REALLY QUICKLY <QUESTIONMARK>",
        "AS THEY'RE LEAVING CAN KASH PULL ZAHRA ASIDE REALLY QUICKLY",
        "AS THEY'RE LEAVING, CAN KASH PULL ZAHRA ASIDE REALLY QUICKLY?",
    ),
    ("NO <PERIOD> STOP <EXCLAMATIONPOINT>", "NO STOP", "NO. STOP!"),
    ("<COMMA> WELL <COMMA> <PERIOD> E-COMMERCE", "WELL E COMMERCE", "WELL, E COMMERCE"),
    ("I'M A MR OR A DR HMM", "I'M A MR OR A DR HMM", "I'M A MR OR A DR HMM"),
    ("<SIL>", None, None),
    ("<MUSIC>", None, None),
    ("<NOISE>", None, None),
    ("<OTHER>", None, None),
    ("THANK YOU <NOISE>", None, None),
    ("<PERIOD>", None, None),
]


@pytest.mark.parametrize("text, plain, punctuated", GIGASPEECH)
def test_gigaspeech_tags(text: str, plain: str | None, punctuated: str | None) -> None:
    assert normalize_transcript(text, style="upper") == plain
    assert normalize_transcript(text, style="upper", keep_punctuation=True) == punctuated
    for tag in re.findall("[A-Z]{3,}", " ".join(re.findall("<[A-Z]+>", text))):
        assert tag not in (plain or "")


SPOKEN = [
    ("Press 1 to mute, 2 to unmute, or 8 to exit.", "press one to mute two to unmute or eight to exit"),
    ("at least a 28.8 kilobit modem", "at least a twenty eight point eight kilobit modem"),
    ("extension 1234, or 8500", "extension one two three four or eighty five hundred"),
    ("Call 1-800-555-0199.", "call one eight hundred five five five zero one nine nine"),
    (
        "12,345 people, the 21st, the 3rd and the 40th",
        "twelve thousand three hundred forty five people the twenty first the third and the fortieth",
    ),
    ("press * or # & wait", "press star or pound and wait"),
    ("$5 is 10% of $50", "five dollars is ten percent of fifty dollars"),
    ("3D audio, IAX2, H.323", "three d audio iax two h three hundred twenty three"),
    ("the Asterisk PBX at 5 P.M.", "the asterisk p b x at five p m"),
    ("visit www.asterisk.org. Thank you...", "visit www dot asterisk dot org thank you"),
    ("a polite \u201cdon\u2019t call\u201d menu", "a polite don't call menu"),
    ("the dogs' 'quoted words' and 'em", "the dogs' quoted words and 'em"),
    ("It's o'clock ' now", "it's o'clock now"),
    ("Speed-dial\u2014un-identified", "speed dial un identified"),
    ("at [@] (simple tone sound plays)", "at"),
    ("caf\u00e9 na\u00efve", "cafe naive"),
    ("Mr. Smith vs. Dr. Jones", "mister smith versus doctor jones"),
]


@pytest.mark.parametrize("text, spoken", SPOKEN)
def test_english_is_written_as_it_is_spoken(text: str, spoken: str) -> None:
    assert normalize_transcript(text) == spoken
    assert normalize_transcript(text, style="upper") == spoken.upper()


@pytest.mark.parametrize("text", ["[ascending tones]", "<beep ascending>", "(2 seconds of silence)", "...", ""])
def test_what_nobody_says_is_garbage(text: str) -> None:
    assert normalize_transcript(text) is None


def test_lhotse_s_names_of_languages() -> None:
    assert normalize_transcript("Press 1", language="English") == "press one"
    assert normalize_transcript("Press 1", language="Dutch") == "press 1"


def test_other_alphabets_pass() -> None:
    text = "\u0421\u043a\u0430\u0439\u043b\u0441, \u0435\u0449\u0451 \u043d\u0435 \u2014 \u0442\u0443\u0442!"
    assert normalize_transcript(text, language="ru") == (
        "\u0441\u043a\u0430\u0439\u043b\u0441 \u0435\u0449\u0451 \u043d\u0435 \u0442\u0443\u0442"
    )
    stressed = "\u0437\u0430\u0301\u043c\u043e\u043a"  # a combining accent that marks stress, no letter
    assert normalize_transcript(stressed, language="ru") == "\u0437\u0430\u043c\u043e\u043a"
    assert normalize_transcript("Stra\u00dfe 7, d\u00e9j\u00e0", language="de") == "stra\u00dfe 7 d\u00e9j\u00e0"


def test_letters_are_never_dropped() -> None:
    assert normalize_transcript("sm\u00f8rrebr\u00f8d") == "sm\u00f8rrebr\u00f8d"


@pytest.mark.parametrize("manifest", sorted(DEMO.glob("english_*.jsonl")), ids=lambda path: path.stem)
def test_every_demo_prompt_is_letters_apostrophes_and_spaces(manifest: Path) -> None:
    for line in manifest.read_text().splitlines():
        text = json.loads(line)["supervisions"][0]["text"]
        spoken = normalize_transcript(text)
        assert spoken is not None and re.fullmatch("[a-z']+( [a-z']+)*", spoken), text
        assert normalize_transcript(spoken) == spoken


@pytest.mark.parametrize(
    "number, spelled",
    [
        (0, "zero"), (13, "thirteen"), (20, "twenty"), (99, "ninety nine"), (100, "one hundred"),
        (842, "eight hundred forty two"), (1001, "one thousand one"), (70_000, "seventy thousand"),
        (123_456_789_012, "one hundred twenty three billion four hundred fifty six million "
                          "seven hundred eighty nine thousand twelve"),
    ],
)  # fmt: skip
def test_spell_number(number: int, spelled: str) -> None:
    assert spell_number(number) == spelled


def test_fillers_are_left_out_for_scoring() -> None:
    assert without_fillers("UM YES UH IT IS") == "YES IT IS"
