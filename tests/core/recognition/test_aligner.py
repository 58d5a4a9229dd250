"""Word times: the letters that are asked for, and edges where the speech is quiet."""

import numpy as np
import pytest

from core.data.index import ManifestIndex
from core.data.reading import read_cut
from core.recognition.aligner import spelled_words, word_times
from core.text.vocabulary import CharacterVocabulary
from recipes.csa_stage1.trimming import trimmed
from tests.recipes.runs import DEMO

RATE = 16000


def test_words_are_spelled_as_they_are_said() -> None:
    vocabulary = CharacterVocabulary.of_texts(["abcdefghijklmnopqrstuvwxyz'"])
    written, spelled = spelled_words('"- Press 1, -- please...', language="en", vocabulary=vocabulary)
    assert written == ['"- Press', "1, --", "please..."]
    assert [vocabulary.decode(ids) for ids in spelled] == ["press", "one", "please"]
    assert spelled_words("...", language="en", vocabulary=vocabulary) == ([], [])


@pytest.mark.parametrize("pause_s", [0.0, 0.3])
def test_edges_are_put_where_recorded_words_end(pause_s: float) -> None:
    """Single words of real speech, joined: where one ends and the next begins is known to the sample."""
    index = ManifestIndex.open(DEMO / "english_test.jsonl")
    words = [cut for cut in index.cuts() if len(cut.supervisions[0].text.split()) == 1][:24]
    clips = [read_cut(cut, sample_rate_hz=RATE).samples for cut in words]
    clips = [clip[slice(*trimmed(clip, top_db=30.0))] for clip in clips]
    pause = np.zeros(round(pause_s * RATE), np.float32)
    samples = np.concatenate([part for clip in clips for part in (clip, pause)])
    begins = np.cumsum([0.0, *((len(clip) + len(pause)) / RATE for clip in clips)])[:-1]
    ends = begins + [len(clip) / RATE for clip in clips]
    lengths = ends - begins
    peaks = list(zip((begins + 0.3 * lengths).tolist(), (begins + 0.75 * lengths).tolist(), strict=True))
    times = word_times(samples, peaks, rate_hz=RATE)
    found_ends, found_begins = np.array([end for _, end in times[:-1]]), np.array([begin for begin, _ in times[1:]])
    assert (found_ends <= found_begins + 1e-9).all()
    if pause_s:
        assert np.median(np.abs(found_ends - ends[:-1])) < 0.03 and np.median(np.abs(found_begins - begins[1:])) < 0.03
    else:
        off = np.maximum(found_ends - ends[:-1], begins[1:] - found_begins).clip(0)
        assert np.median(off) < 0.03 and np.median(found_begins - found_ends) < 0.15


def test_the_times_of_word_edges_when_no_place_is_quiet() -> None:
    tone = np.sin(np.arange(RATE) * 0.3)
    (start, end), (begin, stop) = word_times(tone, [(0.1, 0.4), (0.6, 0.9)], rate_hz=RATE)
    assert 0 <= start <= 0.1 and 0.4 <= end <= begin <= 0.6 and 0.9 <= stop <= 1.0
