"""Reading cuts: real files with every fault, and what lhotse reads of the good ones."""

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from core.data.reading import BadSample, Reading, read_cut

RATE = 16000
DURATION_S = 2.0


def _noise(duration_s: float = DURATION_S, *, rate_hz: int = RATE) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(duration_s * rate_hz)).astype(np.float32)


def _cut(path: Path, *, rate_hz: int = RATE, channels: int = 1, channel: int = 0, start_s: float = 0.0,
         duration_s: float = DURATION_S, texts: tuple[str | None, ...] = ("hello there",)) -> MonoCut:  # fmt: skip
    """A cut of a recording that promises 2 s at 16 kHz in one channel."""
    recording = Recording(
        id="recording",
        sources=[AudioSource(type="file", channels=list(range(channels)), source=str(path))],
        sampling_rate=rate_hz,
        num_samples=round(DURATION_S * rate_hz),
        duration=DURATION_S,
    )
    supervisions = [
        SupervisionSegment(f"s{k}", "recording", start=0.5 * k, duration=0.5, text=text) for k, text in enumerate(texts)
    ]
    return MonoCut("cut-7", start_s, duration_s, channel, supervisions[::-1], recording=recording)


def _reason(cut: MonoCut, *, allowed_s: float | None = None) -> str:
    with pytest.raises(BadSample) as caught:
        read_cut(cut, sample_rate_hz=RATE, allowed_s=allowed_s)
    assert caught.value.sample_id == "cut-7"
    return caught.value.reason


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.flac"
    soundfile.write(path, _noise(), RATE)
    return path


@pytest.mark.parametrize(("start_s", "duration_s"), [(0.0, 2.0), (0.7531, 0.6), (1.5, 0.5)])
def test_a_good_cut_reads_as_lhotse_reads_it(clip: Path, start_s: float, duration_s: float) -> None:
    cut = _cut(clip, start_s=start_s, duration_s=duration_s)
    reading = read_cut(cut, sample_rate_hz=RATE)
    np.testing.assert_allclose(reading.samples, cut.load_audio()[0], atol=1e-6)
    assert reading.samples.dtype == np.float32
    assert (reading.sample_id, reading.path, reading.sample_rate_hz) == ("cut-7", str(clip), RATE)
    assert reading.duration_s == duration_s and reading.text() == "hello there"


def test_a_manifest_of_another_rate_is_brought_to_the_wanted_one(tmp_path: Path) -> None:
    time_s = np.arange(88200) / 44100
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * time_s), 44100)
    reading = read_cut(_cut(tmp_path / "a.wav", rate_hz=44100), sample_rate_hz=RATE)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(32000) / RATE)
    np.testing.assert_allclose(reading.samples[200:-200], expected[200:-200], atol=1e-3)


def test_the_cut_chooses_among_the_channels_that_the_manifest_knows(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([_noise(), -_noise()], axis=1), RATE, subtype="FLOAT")
    reading = read_cut(_cut(tmp_path / "a.wav", channels=2, channel=1), sample_rate_hz=RATE)
    np.testing.assert_array_equal(reading.samples, -_noise())
    assert reading.samples.flags.c_contiguous


def test_a_file_shorter_than_its_manifest_within_rounding_is_good(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _noise(1.98), RATE)
    assert read_cut(_cut(tmp_path / "a.wav"), sample_rate_hz=RATE).duration_s == 1.98


def test_missing_empty_and_undecodable_files_are_bad(tmp_path: Path) -> None:
    assert _reason(_cut(tmp_path / "missing.wav")) == "no such file"
    (tmp_path / "empty.wav").touch()
    assert _reason(_cut(tmp_path / "empty.wav")) == "is empty (0 bytes)"
    (tmp_path / "text.wav").write_text("nothing to hear")
    assert _reason(_cut(tmp_path / "text.wav")).startswith("cannot be decoded: ")
    soundfile.write(tmp_path / "header.wav", np.zeros(0), RATE)
    assert _reason(_cut(tmp_path / "header.wav")) == "holds no samples after 0.000 s"


@pytest.mark.parametrize(
    ("suffix", "codec"), [("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")]
)
def test_a_file_cut_off_half_way_is_bad(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, _noise(), RATE, subtype=codec)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for cut in (_cut(path), _cut(path, start_s=1.8, duration_s=0.2)):
        assert any(word in _reason(cut) for word in ("truncated: ", "holds no samples after", "cannot be decoded"))


def test_the_missing_part_is_said(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _noise(1.5), RATE)
    assert _reason(_cut(tmp_path / "a.wav")) == "truncated: 1.500 s of 2.000 s"
    assert _reason(_cut(tmp_path / "a.wav", start_s=1.4, duration_s=0.5)) == "truncated: 0.100 s of 0.500 s"


def test_another_rate_than_the_manifest_says_is_bad(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _noise(rate_hz=8000), 8000)
    assert _reason(_cut(tmp_path / "a.wav")) == "sampled at 8000 Hz, the manifest says 16000 Hz"


def test_another_number_of_channels_than_the_manifest_says_is_bad(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([_noise(), _noise()], axis=1), RATE)
    assert _reason(_cut(tmp_path / "a.wav")) == "2 channel(s), the manifest says 1"
    soundfile.write(tmp_path / "b.wav", _noise(), RATE)
    assert _reason(_cut(tmp_path / "b.wav", channels=2)) == "1 channel(s), the manifest says 2"
    assert _reason(_cut(tmp_path / "b.wav", channel=3)) == "its recording has no channel 3"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "NaN or infinite"),
        (np.inf, "NaN or infinite"),
        (-np.inf, "NaN or infinite"),
        (1e30, "a sample of 1e+30"),
    ],
)
def test_samples_that_are_no_audio_are_bad(tmp_path: Path, value: float, reason: str) -> None:
    samples = _noise()
    samples[12345] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    assert _reason(_cut(tmp_path / "a.wav")).startswith(reason)
    assert len(read_cut(_cut(tmp_path / "a.wav", duration_s=0.5), sample_rate_hz=RATE).samples) == 8000


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_digital_silence_is_bad(tmp_path: Path, level: float) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(2 * RATE, level), RATE)
    assert _reason(_cut(tmp_path / "a.wav")) == f"silence: every sample is {level:g}"


def test_a_cut_longer_than_allowed_is_bad(clip: Path) -> None:
    assert _reason(_cut(clip), allowed_s=1.5) == "2.000 s long, 1.500 s are allowed"
    assert len(read_cut(_cut(clip), sample_rate_hz=RATE, allowed_s=2.0).samples) == 2 * RATE


def test_recordings_that_are_not_plain_files_are_bad(clip: Path) -> None:
    cut = _cut(clip)
    assert "has transforms" in _reason(cut.perturb_speed(1.1).with_id("cut-7"))
    cut.recording.sources[0].type = "url"
    assert _reason(cut) == "audio of type 'url'; only files can be read"
    cut.recording = None
    assert _reason(cut) == "no recording"


@pytest.mark.parametrize("texts", [(), ("",), ("  ", "\t"), (None,)])
def test_a_cut_without_text_is_bad_for_those_who_ask_for_it(clip: Path, texts: tuple[str | None, ...]) -> None:
    reading = read_cut(_cut(clip, texts=texts), sample_rate_hz=RATE)
    with pytest.raises(BadSample, match=r"cut-7: no text \(.*clip\.flac\)"):
        reading.text()


def test_texts_are_joined_in_the_order_of_time(clip: Path) -> None:
    assert read_cut(_cut(clip, texts=("one ", "", "two", "three")), sample_rate_hz=RATE).text() == "one two three"


def test_bad_samples_are_records_and_survive_the_way_out_of_a_worker(clip: Path) -> None:
    reading: Reading = read_cut(_cut(clip), sample_rate_hz=RATE)
    bad = reading.bad("the letter '%' is not in the vocabulary")
    assert bad.to_record() == {
        "sample_id": "cut-7",
        "reason": "the letter '%' is not in the vocabulary",
        "path": str(clip),
    }
    assert pickle.loads(pickle.dumps(bad)).to_record() == bad.to_record()
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(BadSample) as caught:
        pool.apply(_raise, (bad,))
    assert caught.value.to_record() == bad.to_record()


def _raise(error: Exception) -> None:
    raise error
