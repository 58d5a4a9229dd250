"""Words from phones: by hand for what is hard, and over all sentences that ship."""

import pytest
from lhotse.supervision import AlignmentItem

from core.data.index import ManifestIndex
from manifests.russian_words import words_from_phones
from tests.manifests.clips import DEMO

PRY_AD = "\u043f\u0440\u044f\u0434\u044c"  # pryad'
S, ZEL = "\u0441", "\u0437\u0435\u043b\u0435\u043d\u044c\u044e"  # s zelen'yu
EXAT = "\u0435\u0445\u0430\u0442\u044c"  # yekhat'


def items(phones: str) -> list[AlignmentItem]:
    return [AlignmentItem(one, start=round(0.1 * place, 3), duration=0.1) for place, one in enumerate(phones.split())]


def spans(text: str, phones: str) -> list[tuple[str, float, float]]:
    found = words_from_phones(text, items(phones))
    return [(word.symbol, round(word.start, 3), round(word.start + word.duration, 3)) for word in found]


def test_one_letter_words_join_what_they_are_said_as() -> None:
    text = f"{PRY_AD} {S} {ZEL}"
    phones = "pau p rr aa tt z zz ee ll ae nn j u pau"
    assert spans(text, phones) == [(PRY_AD, 0.1, 0.5), (S, 0.5, 0.6), (ZEL, 0.6, 1.3)]


def test_a_pause_belongs_to_no_word_and_the_j_to_the_next() -> None:
    assert spans(f"{PRY_AD}, - {EXAT}.", "p rr aa tt pau j ee h ay tt pau") == [
        (f"{PRY_AD}, -", 0.0, 0.4),
        (f"{EXAT}.", 0.5, 1.0),
    ]


@pytest.mark.parametrize("part", ["train", "dev", "test"])
def test_the_words_of_all_sentences(part: str) -> None:
    for cut in ManifestIndex.open(DEMO / f"russian_{part}.jsonl").cuts():
        supervision = cut.supervisions[0]
        words, phones = supervision.alignment["word"], supervision.alignment["phone"]
        assert " ".join(word.symbol for word in words) == supervision.text
        starts = [word.start for word in words]
        ends = [round(word.start + word.duration, 3) for word in words]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False)) and min(starts) > 0
        for word, start, end in zip(words, starts, ends, strict=True):
            own = [phone.symbol for phone in phones if start <= phone.start < end - 1e-6]
            letters = sum(letter.isalpha() for letter in word.symbol)
            assert own and "pau" not in own and abs(len(own) - letters) <= max(2, letters // 3), word
        said = [phone for phone in phones if phone.symbol != "pau"]
        assert sum(word.duration for word in words) > 0.97 * sum(phone.duration for phone in said)
