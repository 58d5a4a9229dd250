"""The times of words from the times of phones, for festvox-ru: its labels do not say where one
word ends and the next begins.

Letters are laid over phones by the cheapest alignment (edit distance): Russian is written much as it is said, and most
of what differs (voicing, reduced vowels, the j of "ya") is in the table. A word lasts from its first phone to its last.
"""

from collections.abc import Sequence

import numpy as np
from lhotse.supervision import AlignmentItem

PAUSE = "pau"
# The phones of each letter, in alphabetical order: a be ve ge de ye zhe ze i i-kratkoye ka el em en o pe er es te
# u ef kha tse che sha shcha hard-sign y soft-sign e yu ya; then yo, which Unicode puts behind them.
_ALPHABET = [
    "a aa ay ae", "b bb p pp", "v vv f ff", "g gg k kk h hh v", "d dd t tt c ch", "e ee ae i ii y ay", "zh sh",
    "z zz s ss zh sh", "i ii y yy", "j", "k kk g gg h", "l ll", "m mm", "n nn", "o oo a aa ay ae", "p pp b bb", "r rr",
    "s ss z zz sh zh sch", "t tt d dd c ch", "u uu ur", "f ff v vv", "h hh", "c", "ch sh sch", "sh zh", "sch ch", "",
    "y yy i", "", "e ee i ae", "u uu ur", "a aa ae i e",
]  # fmt: skip
_YO = "\u0451"
_SOUNDS = {chr(0x430 + place): sounds.split() for place, sounds in enumerate(_ALPHABET)} | {_YO: ["oo"]}
_VOWEL_PHONES = frozenset("a aa ay ae e ee i ii oo u uu ur y yy".split())
_VOWELS = frozenset(letter for letter, sounds in _SOUNDS.items() if sounds and sounds[0] in _VOWEL_PHONES)
_AFTER_J = frozenset("\u0435\u044e\u044f" + _YO)  # ye, yu, ya, yo
_BOUNDARY = " "
_PAUSE_IN_A_WORD = 5.0


def words_from_phones(text: str, phones: Sequence[AlignmentItem]) -> list[AlignmentItem]:
    """One item a word of `text` as it is written; what has no letters ("-") belongs to the word before."""
    written: list[str] = []
    for word in text.split():
        if written and not any(letter in _SOUNDS for letter in word.lower()):
            written[-1] += f" {word}"
        else:
            written.append(word)
    letters = _BOUNDARY.join("".join(one for one in word.lower() if one in _SOUNDS) for word in written)
    said: list[list[AlignmentItem]] = [[] for _ in written]
    for phone, number in zip(phones, _word_of_phones(letters, [phone.symbol for phone in phones]), strict=True):
        if phone.symbol != PAUSE and number is not None:
            said[number].append(phone)
    items, time_s = [], 0.0
    for word, own in zip(written, said, strict=True):
        start_s, time_s = (own[0].start, own[-1].end) if own else (time_s, time_s)
        items.append(AlignmentItem(word, start=round(start_s, 3), duration=round(time_s - start_s, 3)))
    return items


def _word_of_phones(letters: str, phones: Sequence[str]) -> list[int | None]:
    """The number of the word that each phone belongs to; None for what is between words."""
    rows, columns = len(letters), len(phones)
    cost = np.full((rows + 1, columns + 1), np.inf)
    step = np.zeros((rows + 1, columns + 1), np.int8)  # 0: letter and phone, 1: a letter unsaid, 2: a phone unwritten
    cost[0, 0] = 0.0
    for i in range(rows + 1):
        for j in range(columns + 1):
            choices = [
                cost[i - 1, j - 1] + _match(letters[i - 1], phones[j - 1]) if i and j else np.inf,
                cost[i - 1, j] + _unsaid(letters[i - 1]) if i else np.inf,
                cost[i, j - 1] + _unwritten(letters, i, phones[j - 1]) if j else np.inf,
            ]
            if i or j:
                step[i, j] = int(np.argmin(choices))
                cost[i, j] = min(choices)
    found: list[int | None] = [None] * columns
    i, j = rows, columns
    while i or j:
        if step[i, j] != 1:
            between = step[i, j] == 2 and phones[j - 1] == PAUSE
            found[j - 1] = None if between else letters[:i].count(_BOUNDARY)
        i, j = i - (step[i, j] != 2), j - (step[i, j] != 1)
    return found


def _match(letter: str, phone: str) -> float:
    if letter == _BOUNDARY or phone == PAUSE:
        return float("inf")
    if phone in _SOUNDS[letter]:
        return 0.0
    return 1.0 if (letter in _VOWELS) == (phone in _VOWEL_PHONES) else 3.0


def _unsaid(letter: str) -> float:
    return 0.0 if letter == _BOUNDARY or not _SOUNDS[letter] else 1.0


def _unwritten(letters: str, place: int, phone: str) -> float:
    """The cost of a phone before `letters[place]` that no letter stands for."""
    if phone == PAUSE:
        is_between = place in (0, len(letters)) or _BOUNDARY in letters[place - 1 : place + 1]
        return 0.0 if is_between else _PAUSE_IN_A_WORD
    return 0.1 if phone == "j" and letters[place : place + 1] in _AFTER_J else 1.2
