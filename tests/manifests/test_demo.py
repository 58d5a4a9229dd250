"""The corpus that ships: whole, readable, and split so that the test part is held out."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from core.data.index import ManifestIndex
from manifests import demo
from manifests.ogg import write_ogg
from manifests.split import shared_trigrams, split_by_family, words_of
from tests.manifests.clips import DEMO

PARTS = [f"{language}_{part}" for language in ("english", "russian") for part in ("train", "dev", "test")]


def _cuts(part: str):
    index = ManifestIndex.open(DEMO / f"{part}.jsonl")
    return [index.read(row) for row in range(len(index))]


@pytest.fixture(scope="module")
def cuts():
    return {part: _cuts(part) for part in PARTS}


def test_every_recording_is_there_once_and_has_its_length(cuts):
    paths = [Path(cut.recording.sources[0].source) for part in PARTS for cut in cuts[part]]
    assert sorted(paths) == sorted(DEMO.resolve().glob("*/**/*.ogg"))
    assert len(paths) == 551 + 120
    for part in PARTS:
        for cut in cuts[part]:
            info = soundfile.info(cut.recording.sources[0].source)
            assert (info.samplerate, info.channels, info.frames) == (16_000, 1, cut.num_samples)


def test_the_readme_states_the_sizes(cuts):
    rows = re.findall(r"^\| `(\w+)\.jsonl` \| (\d+) \| (\d+) \| ([\d.]+) \|$", (DEMO / "README.md").read_text(), re.M)
    assert rows == [
        (
            part,
            str(len(cuts[part])),
            str(sum(len(words_of(cut.supervisions[0].text)) for cut in cuts[part])),
            f"{sum(cut.duration for cut in cuts[part]) / 60:.1f}",
        )
        for part in PARTS
    ]
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 20e6


@pytest.mark.parametrize("language", ["english", "russian"])
def test_no_held_out_prompt_is_a_near_copy_of_a_training_prompt(cuts, language):
    words = {
        part: [words_of(cut.supervisions[0].text) for cut in cuts[f"{language}_{part}"]]
        for part in ("train", "dev", "test")
    }
    for part, other in (("test", "train"), ("test", "dev"), ("dev", "train")):
        assert not set(words[part]) & set(words[other])
        assert max(shared_trigrams(one, two) for one in words[part] for two in words[other]) < 0.5
    if language == "english":
        assert sum(map(len, words["test"])) >= 500
        assert sum(len(one) == 1 for one in words["test"]) > 20 < sum(len(one) > 4 for one in words["test"])


def test_the_overfit_part_is_ten_training_prompts_of_middle_length(cuts):
    chosen, train = _cuts("english_overfit"), cuts["english_train"]
    assert [cut.id for cut in chosen] == demo.overfit_names({cut.id: cut.duration for cut in train})
    assert len(chosen) == 10 and all(1.5 <= cut.duration <= 4.0 for cut in chosen)
    lines = [(DEMO / f"english_{part}.jsonl").read_text("utf-8").splitlines() for part in ("overfit", "train")]
    assert set(lines[0]) <= set(lines[1])


@pytest.mark.parametrize("language", ["english", "russian"])
def test_the_split_follows_from_the_texts(cuts, language):
    names = {part: [cut.id for cut in cuts[f"{language}_{part}"]] for part in ("train", "dev", "test")}
    texts = {cut.id: cut.supervisions[0].text for part in names for cut in cuts[f"{language}_{part}"]}
    split = split_by_family(texts, **demo.HELD_OUT_WORDS[language])
    assert {part: sorted(split[part]) for part in names} == {part: sorted(names[part]) for part in names}


def test_english_texts_are_spoken_words(cuts):
    for part in PARTS[:3]:
        for cut in cuts[part]:
            assert re.fullmatch(r"[A-Za-z ,.?!:;'\"-]+", cut.supervisions[0].text), cut.supervisions[0].text


def test_phones_tile_the_russian_recordings(cuts):
    phones = set()
    for part in PARTS[3:]:
        for cut in cuts[part]:
            labels = cut.supervisions[0].alignment["phone"]
            ends = np.cumsum([label.duration for label in labels])
            np.testing.assert_allclose([label.start for label in labels], [0.0, *ends[:-1]], atol=1e-6)
            assert abs(ends[-1] - cut.duration) < 0.05
            phones |= {label.symbol for label in labels}
            assert re.search("[\u0430-\u044f]", cut.supervisions[0].text) and "+" not in cut.supervisions[0].text
    assert len(phones) == 51


def test_g722_and_long_clips_survive(tmp_path):
    """A minute of noise through the writer; G.722 of a tone through the decoder."""
    av = pytest.importorskip("av")
    time_s = np.arange(70 * 16_000) / 16_000
    tone = (8_000 * np.sin(2 * np.pi * 440 * time_s)).astype(np.int16)
    write_ogg(tone, tmp_path / "long.ogg")
    written = soundfile.read(tmp_path / "long.ogg", dtype="int16")[0]
    assert len(written) == len(tone) and np.corrcoef(written, tone)[0, 1] > 0.99
    with av.open(str(tmp_path / "tone.g722"), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        for start in range(0, 32_000, 320):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 320], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    decoded = demo._decode_g722(tmp_path / "tone.g722")
    assert len(decoded) == 2 * (tmp_path / "tone.g722").stat().st_size
    delay = int(np.argmax(np.correlate(decoded[:2_000].astype(float), tone[:1_000].astype(float))))
    assert np.corrcoef(decoded[delay : delay + 16_000], tone[:16_000])[0, 1] > 0.99


def test_missing_packages_are_named(tmp_path):
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    with pytest.raises(SystemExit, match="expected one; --download fetches them"):
        demo.main(["--output", str(tmp_path / "out"), "--packages", str(tmp_path)])
