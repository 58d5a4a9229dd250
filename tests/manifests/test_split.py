"""Families of near-equal prompts stay on one side, and the split is a function of the texts."""

import pytest

from manifests.split import shared_trigrams, split_by_family, words_of

TEMPLATES = {
    "agent": "Please enter your agent number followed by the pound key.",
    "password": "Please enter your password followed by the pound key.",
    "incorrect": "Password incorrect.  Please enter your password followed by the pound key.",
}


def _side(parts: dict[str, list[str]]) -> dict[str, str]:
    return {name: part for part, names in parts.items() for name in names}


def test_words():
    assert words_of("...That's Call-Forward, on NO answer! \u0401\u043b\u043a\u0430") == (
        "that's", "call", "forward", "on", "no", "answer", "\u0451\u043b\u043a\u0430",
    )  # fmt: skip


def test_shared_trigrams_by_hand():
    # of abc bcd cde the longer text has two
    assert shared_trigrams(tuple("abcde"), tuple("xabcdyz")) == pytest.approx(2 / 3)
    assert shared_trigrams(tuple("xabcdyz"), tuple("abcde")) == pytest.approx(2 / 3)
    assert shared_trigrams(tuple("ab"), tuple("abc")) == 0.0


@pytest.mark.parametrize("test_words", [1, 20, 60, 100])
def test_templates_and_equal_texts_stay_together(test_words):
    fillers = {f"filler-{number}": f"sentence {number} speaks of thing{number} else{number}" for number in range(40)}
    equal = {"one": "Goodbye!", "other": "goodbye"}
    side = _side(split_by_family({**TEMPLATES, **fillers, **equal}, test_words=test_words, dev_words=30))
    assert len({side[name] for name in TEMPLATES}) == 1
    assert side["one"] == side["other"]
    assert len(side) == len(TEMPLATES) + len(fillers) + len(equal)


def test_sizes_and_large_families():
    texts = {f"word-{number}": f"word{number}" for number in range(300)}
    for one in range(30):  # 21 words are more than a fifth of 100
        texts[f"long-{one}"] = " ".join(f"long{one}{number}" for number in range(21))
    parts = split_by_family(texts, test_words=100, dev_words=40)
    assert [len(parts[part]) for part in ("test", "dev", "train")] == [100, 40, 160 + 30]
    assert not any(name.startswith("long") for name in parts["test"] + parts["dev"])
    assert 0.2 < sum(int(name.split("-")[1]) < 150 for name in parts["test"]) / 100 < 0.8  # no stretch of the list


def test_only_the_texts_decide():
    texts = {f"word-{number}": f"word{number}" for number in range(50)}
    parts = split_by_family(texts, test_words=10, dev_words=5)
    renamed = {f"x{name}": texts[name] for name in reversed(list(texts))}
    assert split_by_family(renamed, test_words=10, dev_words=5) == {
        part: sorted(f"x{name}" for name in names) for part, names in parts.items()
    }
