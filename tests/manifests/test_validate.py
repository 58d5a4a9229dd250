"""One file of each fault is listed with its reason; good files are not."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut

from core.data.index import write_manifest
from core.data.reading import BadSample
from core.rundir.exit_codes import ExitCode
from core.rundir.whole_files import read_records
from manifests import validate
from tests.manifests.clips import SAMPLE_RATE_HZ, demo_cuts, samples_of


def _rewrite(cut: MonoCut, path: Path, samples: np.ndarray, *, sample_rate_hz: int = SAMPLE_RATE_HZ, **how) -> None:
    soundfile.write(path, samples, sample_rate_hz, **how)
    cut.recording.sources[0].source = str(path)


@pytest.fixture
def corpus(tmp_path) -> tuple[Path, dict[str, str]]:
    """A manifest with one utterance of each fault and a good one, and a pattern of the reason by id."""
    reasons = ["no such file", "empty", "cannot be decoded", "cannot be decoded|truncated", "truncated",
               r"the file has [\d.]+ s", "8000 Hz", "2 channel", "NaN", "no text", "no samples", ""]  # fmt: skip
    cuts = demo_cuts(len(reasons))
    samples = [samples_of(cut) for cut in cuts]
    for number, cut in enumerate(cuts):
        _rewrite(cut, tmp_path / f"{number}.flac", samples[number])
    paths = [Path(cut.recording.sources[0].source) for cut in cuts]
    paths[0].unlink()
    paths[1].write_bytes(b"")
    paths[2].write_bytes(b"no audio at all" * 100)
    paths[3].write_bytes(paths[3].read_bytes()[: paths[3].stat().st_size // 2])
    _rewrite(cuts[4], tmp_path / "4.wav", samples[4][: len(samples[4]) * 3 // 4])
    _rewrite(cuts[5], tmp_path / "5.wav", np.tile(samples[5], 2))
    _rewrite(cuts[6], tmp_path / "6.wav", samples[6], sample_rate_hz=8_000)
    _rewrite(cuts[7], tmp_path / "7.wav", np.stack([samples[7], samples[7]], axis=1))
    samples[8][100] = np.nan
    _rewrite(cuts[8], tmp_path / "8.wav", samples[8], subtype="FLOAT")
    cuts[9].supervisions[0].text = "  "
    _rewrite(cuts[10], tmp_path / "10.wav", samples[10][:0])
    write_manifest(cuts, tmp_path / "part.jsonl")
    return tmp_path / "part.jsonl", {cut.id: reason for cut, reason in zip(cuts, reasons, strict=True) if reason}


def test_one_of_each_fault(corpus, tmp_path, capsys):
    manifest, expected = corpus
    bad_list = tmp_path / "bad.jsonl"
    with pytest.raises(SystemExit) as stopped:
        validate.main([str(manifest), "--workers", "2", "--output", str(bad_list)])
    assert stopped.value.code == ExitCode.DATA
    records = list(read_records(bad_list))
    assert [record["sample_id"] for record in records] == list(expected)
    for record in records:
        assert re.search(expected[record["sample_id"]], record["reason"]), record
    assert [record["row"] for record in records] == list(range(11))
    assert set(records[0]) == {"manifest", "row", "sample_id", "reason", "path"}
    assert Path(records[0]["path"]) == tmp_path / "0.flac"
    assert "11 bad utterances" in capsys.readouterr().out


def test_good_files_pass_in_many_chunks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(validate, "_CHUNK_ROWS", 3)
    write_manifest(demo_cuts(10), tmp_path / "part.jsonl")
    bad_list = tmp_path / "bad.jsonl"
    validate.main([str(tmp_path / "part.jsonl"), "--workers", "2", "--output", str(bad_list), "--sample-rate", "16000"])
    assert "all utterances are good" in capsys.readouterr().out
    assert not bad_list.exists()


def test_a_rate_that_all_must_have():
    (cut,) = demo_cuts(1)
    validate.check(cut, sample_rate_hz=16_000)
    with pytest.raises(BadSample, match="sampled at 16000 Hz, expected 24000 Hz"):
        validate.check(cut, sample_rate_hz=24_000)


def test_one_utterance_of_a_long_recording(tmp_path):
    """Only its own samples decide."""
    (cut,) = demo_cuts(1)
    samples = samples_of(cut)
    samples[-1_000] = np.nan
    _rewrite(cut, tmp_path / "long.wav", samples, subtype="FLOAT")
    half_s = cut.duration / 2
    validate.check(cut.truncate(duration=half_s), sample_rate_hz=None)
    with pytest.raises(BadSample, match="NaN"):
        validate.check(cut.truncate(offset=half_s), sample_rate_hz=None)
