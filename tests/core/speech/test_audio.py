"""Decoding against what was written, parts of files against slices of the whole; what cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from core.speech.audio import AudioError, decode, file_duration_s, read_audio

RATE = 16000
FORMATS = [
    ("wav", "WAV", "PCM_16"),
    ("flac", "FLAC", "PCM_16"),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
]


def _tones(num_samples: int, *, rate_hz: float, hz: tuple[float, ...] = (220.0, 1333.3, 2950.0)) -> np.ndarray:
    """A sum of sines, which at any rate can be written down without resampling."""
    time_s = np.arange(num_samples) / rate_hz
    return (sum(np.sin(2 * np.pi * f * time_s + f) for f in hz) / (2 * len(hz))).astype(np.float32)


@pytest.mark.parametrize(("suffix", "container", "codec"), FORMATS)
def test_every_format_gives_what_was_written_and_any_part_of_it(
    tmp_path: Path, suffix: str, container: str, codec: str
) -> None:
    written = _tones(3 * RATE, rate_hz=RATE)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, written, RATE, format=container, subtype=codec)
    whole = read_audio(path, sample_rate_hz=RATE)
    assert whole.dtype == np.float32 and whole.shape == written.shape
    assert np.corrcoef(whole, written)[0, 1] > 0.99
    assert file_duration_s(path) == 3.0
    if codec == "PCM_16":
        np.testing.assert_allclose(whole, written, atol=2**-15)
    part = read_audio(path, sample_rate_hz=RATE, start_s=1.2345, duration_s=0.75)
    start = 19752
    np.testing.assert_allclose(part, whole[start : start + 12000], atol=2e-3)  # lossy decoders warm up at a seek


def test_a_part_that_reaches_past_the_end_gives_what_there_is(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _tones(RATE, rate_hz=RATE), RATE)
    assert len(read_audio(tmp_path / "a.wav", sample_rate_hz=RATE, start_s=0.75, duration_s=9.0)) == RATE // 4


def test_start_and_duration_are_rounded_to_the_nearest_sample(tmp_path: Path) -> None:
    ramp = np.arange(1000, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", ramp, 8000, subtype="PCM_16")
    for first, count in ((3, 7), (101, 333), (997, 1)):  # as seconds, some lie a last digit below the sample
        decoded = decode(tmp_path / "a.wav", start_s=first / 8000, duration_s=count / 8000)
        np.testing.assert_array_equal(decoded.samples[:, 0] * 2**15, ramp[first : first + count])


def test_channels_are_averaged_or_chosen(tmp_path: Path) -> None:
    left, right = _tones(800, rate_hz=RATE), _tones(800, rate_hz=RATE, hz=(500.0,))
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path, sample_rate_hz=RATE), (left + right) / 2, atol=1e-7)
    np.testing.assert_array_equal(read_audio(path, sample_rate_hz=RATE, channel=1), right)
    with pytest.raises(AudioError, match=r"stereo\.wav: has no channel 2: it has 2"):
        read_audio(path, sample_rate_hz=RATE, channel=2)


def test_a_file_of_another_rate_is_resampled(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _tones(44100, rate_hz=44100), 44100, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav", sample_rate_hz=RATE)
    assert audio.shape == (RATE,)
    np.testing.assert_allclose(audio[200:-200], _tones(RATE, rate_hz=RATE)[200:-200], atol=1e-3)


def test_errors_name_the_file_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "words.flac").write_text("these are no samples" * 10)
    (tmp_path / "data.raw").write_bytes(b"12345678")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "short.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "half.flac", np.random.default_rng(0).uniform(-1, 1, RATE), RATE)
    (tmp_path / "half.flac").write_bytes((tmp_path / "half.flac").read_bytes()[: RATE // 2])
    expected = {
        "missing.wav": "no such file",
        "empty.wav": r"is empty \(0 bytes\)",
        "words.flac": "cannot be decoded: ",
        "data.raw": "cannot be decoded: ",
        "none.wav": r"holds no samples after 0\.000 s",
        "half.flac": "cannot be decoded: .*lost sync",
    }
    for name, reason in expected.items():
        with pytest.raises(AudioError, match=rf"{name}: {reason}") as caught:
            read_audio(tmp_path / name, sample_rate_hz=RATE)
        assert caught.value.path == tmp_path / name
    with pytest.raises(AudioError, match=r"short\.wav: holds no samples after 1\.500 s"):
        read_audio(tmp_path / "short.wav", sample_rate_hz=RATE, start_s=1.5)


def test_a_flac_that_hides_its_length_is_read_in_parts_and_refused_whole(tmp_path: Path) -> None:
    path = tmp_path / "piped.flac"
    soundfile.write(path, _tones(RATE, rate_hz=RATE), RATE)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO's 36 bits for the number of samples: 0 is unknown
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert len(read_audio(path, sample_rate_hz=RATE, start_s=0.25, duration_s=0.5)) == RATE // 2
    with pytest.raises(AudioError, match="does not say how long it is"):
        read_audio(path, sample_rate_hz=RATE)
