"""The cache gives what the files hold, says whose it is, and is refused when it is not whole."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, Recording

from core.data.index import ManifestIndex, write_manifest
from core.data.pcm_cache import CARD, OFFSETS, SAMPLES, PcmCache, cache_path, write_cache

RATE = 16000


def corpus(folder: Path, lengths: list[int]) -> tuple[ManifestIndex, list[np.ndarray]]:
    rng = np.random.default_rng(len(lengths))
    cuts, clips = [], []
    for number, length in enumerate(lengths):
        samples = rng.integers(-(2**15), 2**15, length).astype(np.int16)
        soundfile.write(folder / f"{number}.flac", samples, RATE)
        clips.append(soundfile.read(folder / f"{number}.flac", dtype="float32")[0])
        recording = Recording.from_file(folder / f"{number}.flac")
        cuts.append(MonoCut(str(number), 0.0, recording.duration, 0, [], recording=recording))
    write_manifest(cuts, folder / "speech.jsonl")
    return ManifestIndex.open(folder / "speech.jsonl"), clips


def test_samples_come_out_exactly(tmp_path: Path) -> None:
    index, clips = corpus(tmp_path, [5000, 1, 777])
    clips[1] = clips[1][:0]  # could not be read
    write_cache(index.manifest, iter(clips), sample_rate_hz=RATE)
    cache = PcmCache.open(index)
    assert len(cache) == 3 and [cache.num_samples(row) for row in range(3)] == [5000, 0, 777]
    for row, clip in enumerate(clips):
        assert np.array_equal(cache.read(row), clip) and cache.read(row).dtype == np.float32
    assert np.array_equal(cache.read(0, start=100, num=50), clips[0][100:150])
    assert np.array_equal(cache.read(0, start=4990, num=50), clips[0][4990:]), "never of the next clip"
    again = pickle.loads(pickle.dumps(cache))
    assert np.array_equal(again.read(2), clips[2])
    assert len(pickle.dumps(cache)) < 1000


def test_full_scale_does_not_wrap_around(tmp_path: Path) -> None:
    index, _ = corpus(tmp_path, [3])
    cache = write_cache(index.manifest, [np.array([1.5, 1.0, -1.5])], sample_rate_hz=RATE)
    assert cache.read(0).tolist() == pytest.approx([1.0, 1.0, -1.0], abs=1e-4)


def test_a_cache_of_another_manifest_is_refused(tmp_path: Path) -> None:
    index, clips = corpus(tmp_path, [50, 60])
    with pytest.raises(ValueError, match="no cache of samples; make it by"):
        PcmCache.open(index)
    write_cache(index.manifest, clips, sample_rate_hz=RATE)
    write_manifest(list(index.cuts())[::-1], index.manifest)
    with pytest.raises(ValueError, match="of another manifest than"):
        PcmCache.open(ManifestIndex.open(index.manifest))


@pytest.mark.parametrize("name", [SAMPLES, OFFSETS, CARD])
def test_a_damaged_cache_is_named(tmp_path: Path, name: str) -> None:
    index, clips = corpus(tmp_path, [5000, 60])
    write_cache(index.manifest, clips, sample_rate_hz=RATE)
    path = cache_path(index.manifest) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        PcmCache.open(index)


def test_an_interrupted_cache_is_none(tmp_path: Path) -> None:
    index, clips = corpus(tmp_path, [50, 60])
    write_cache(index.manifest, clips, sample_rate_hz=RATE)

    def stopped():
        yield clips[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(index.manifest, stopped(), sample_rate_hz=RATE)
    with pytest.raises(ValueError, match="no cache"):
        PcmCache.open(index)
    assert not [path for path in cache_path(index.manifest).iterdir() if path.name.startswith(".")]
