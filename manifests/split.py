"""Train, dev and test parts of a small corpus of prompts, such that a test prompt is no near copy of a training prompt.

Prompts that say almost the same ("Please enter your agent number followed by the pound key", "Please enter your
password followed by the pound key") form one family and stay together: two prompts are related when their words are
equal, or when both have three words or more and at least half of the word trigrams of the shorter one occur in the
other; a family is everything related, directly or over others. Families are taken in the order of a hash of their
words, so the split depends on the texts alone.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping

from scipy.cluster.hierarchy import DisjointSet

SHARED_TRIGRAMS = 0.5


def words_of(text: str) -> tuple[str, ...]:
    """The words that count when two texts are compared: lower case, no punctuation."""
    return tuple(re.findall(r"[\w']+", text.lower()))


def split_by_family(texts: Mapping[str, str], *, test_words: int, dev_words: int) -> dict[str, list[str]]:
    """Names of `texts` by part: at least `test_words` words of test, then `dev_words` of dev, the rest train.

    A family larger than a fifth of a part never goes into it: it would be most of the score.
    """
    parts: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    wanted = {"test": test_words, "dev": dev_words}
    missing = dict(wanted)
    for family in sorted(_families(texts), key=lambda family: _family_hash(family, texts)):
        num_words = sum(len(words_of(texts[name])) for name in family)
        open_parts = [part for part in missing if missing[part] > 0 and num_words <= wanted[part] / 5]
        part = open_parts[0] if open_parts else "train"
        parts[part] += family
        if part != "train":
            missing[part] -= num_words
    return {part: sorted(names) for part, names in parts.items()}


def shared_trigrams(words: tuple[str, ...], others: tuple[str, ...]) -> float:
    """The part of the trigrams of the shorter text that the longer one has too; 0 for texts under three words."""
    trigrams, other_trigrams = _trigrams(words), _trigrams(others)
    fewer = min(len(trigrams), len(other_trigrams))
    return len(trigrams & other_trigrams) / fewer if fewer else 0.0


def _families(texts: Mapping[str, str]) -> list[list[str]]:
    words = {name: words_of(text) for name, text in texts.items()}
    names_of_words = defaultdict(list)
    for name in sorted(texts):
        names_of_words[words[name]].append(name)
    distinct = sorted(names_of_words)
    related = DisjointSet(distinct)
    for number, one in enumerate(distinct):
        for other in distinct[:number]:
            if shared_trigrams(one, other) >= SHARED_TRIGRAMS:
                related.merge(one, other)
    return [sorted(name for member in family for name in names_of_words[member]) for family in related.subsets()]


def _family_hash(family: list[str], texts: Mapping[str, str]) -> str:
    first = min(" ".join(words_of(texts[name])) for name in family)
    return hashlib.sha256(first.encode()).hexdigest()


def _trigrams(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {words[start : start + 3] for start in range(len(words) - 2)}
