"""The index of a manifest against a plain read by lhotse; faults; sharing between processes."""

import json
import multiprocessing
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet, MonoCut
from lhotse.testing.dummies import dummy_recording, dummy_supervision

from core.data import index as index_module
from core.data.index import ROW, ManifestIndex, build_index, index_path, write_manifest

DEMO = Path(__file__).parents[3] / "manifests" / "demo"


def _cuts(num: int) -> list[MonoCut]:
    """Cuts of different lengths and texts, some beyond ASCII."""
    cuts = []
    for number in range(num):
        recording = dummy_recording(number, duration=0.5 + number)
        supervision = dummy_supervision(number, duration=0.5 + number, text="w\u00f6rd " * number)
        cuts.append(MonoCut(f"cut-{number}", 0.0, 0.5 + number, 0, [supervision], recording=recording))
    return cuts


@pytest.fixture
def manifest(tmp_path) -> Path:
    write_manifest(_cuts(40), tmp_path / "train.jsonl")
    return tmp_path / "train.jsonl"


def test_rows_and_cuts_are_what_lhotse_reads():
    for manifest in sorted(DEMO.glob("*.jsonl")):
        cuts = list(CutSet.from_jsonl(manifest))
        index = ManifestIndex.open(manifest)
        assert len(index) == len(cuts)
        np.testing.assert_array_equal(index.durations_s, np.float32([cut.duration for cut in cuts]))
        np.testing.assert_array_equal(index.num_chars, [len(cut.supervisions[0].text) for cut in cuts])
        np.testing.assert_array_equal(index.sample_rates_hz, [cut.sampling_rate for cut in cuts])
        for row in range(0, len(cuts), 7):
            assert index.read(row) == cuts[row].with_recording_path_prefix(DEMO.resolve())


def test_written_cuts_come_back_and_follow_their_folder(tmp_path):
    cut = next(iter(CutSet.from_jsonl(DEMO / "english_dev.jsonl"))).with_recording_path_prefix(DEMO)
    inside = tmp_path / "corpus" / "audio" / "clip.ogg"
    inside.parent.mkdir(parents=True)
    shutil.copy(cut.recording.sources[0].source, inside)
    copied = cut.with_id("copied")
    copied.recording = copied.recording.with_path_prefix("")
    copied.recording.sources[0].source = str(inside)
    assert write_manifest([cut, copied], tmp_path / "corpus" / "part.jsonl") == 2
    (tmp_path / "corpus").rename(tmp_path / "moved")
    index = ManifestIndex.open(tmp_path / "moved" / "part.jsonl")
    assert index.read(0).recording.sources[0].source == cut.recording.sources[0].source  # absolute, where it was
    assert index.read(1).recording.sources[0].source == str(tmp_path / "moved" / "audio" / "clip.ogg")
    np.testing.assert_array_equal(index.read(1).load_audio(), cut.load_audio())


def test_a_cut_is_read_by_one_seek(manifest):
    lines = manifest.read_bytes().splitlines(keepends=True)
    expected = ManifestIndex.open(manifest).read(17)
    manifest.write_bytes(b"".join(line if row == 17 else b"#" * len(line) for row, line in enumerate(lines)))
    assert ManifestIndex.open(manifest).read(17) == expected  # nothing but its line was looked at


def test_a_missing_index_is_built(manifest):
    built = index_path(manifest).read_bytes()
    index_path(manifest).unlink()
    assert len(ManifestIndex.open(manifest)) == 40
    assert index_path(manifest).read_bytes() == built


def test_a_missing_index_in_a_read_only_folder(manifest, monkeypatch):
    expected = ManifestIndex.open(manifest).durations_s.copy()
    index_path(manifest).unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.warns(UserWarning, match="no index"):
        index = ManifestIndex.open(manifest)
    np.testing.assert_array_equal(index.durations_s, expected)
    assert index.read(39).id == "cut-39"
    assert not index_path(manifest).exists()


def test_a_changed_manifest_is_refused(manifest):
    content = manifest.read_bytes()
    manifest.write_bytes(content + content.splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match=r"train\.jsonl: changed .*delete train\.jsonl\.index\.npy"):
        ManifestIndex.open(manifest)
    lines = content.splitlines(keepends=True)
    for changed in ([lines[39], *lines[1:39], lines[0]], [line.replace(b"1.5", b"2.5") for line in lines]):
        manifest.write_bytes(b"".join(changed))  # as many bytes in all
        with pytest.raises(ValueError, match="changed since it was indexed"):
            ManifestIndex.open(manifest).read(1)


def test_an_index_does_not_outlive_its_manifest(manifest, monkeypatch):
    monkeypatch.setattr(index_module, "build_index", _raise_killed)
    with pytest.raises(OSError, match="killed"):
        write_manifest(_cuts(5), manifest)
    monkeypatch.undo()
    assert len(ManifestIndex.open(manifest)) == 5


def _raise_killed(manifest: Path) -> Path:
    raise OSError("killed")


def test_faults_are_named(tmp_path, manifest):
    with pytest.raises(ValueError, match=r"none\.jsonl: no such manifest"):
        ManifestIndex.open(tmp_path / "none.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(manifest.read_bytes() + json.dumps({"id": "x", "duration": 1.0}).encode() + b"\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl:41: no cut with a recording"):
        ManifestIndex.open(bad)
    assert not list(tmp_path.glob("*bad*npy*"))
    index_path(manifest).write_bytes(index_path(manifest).read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"train\.jsonl\.index\.npy: damaged"):
        ManifestIndex.open(manifest)


def test_an_empty_manifest(tmp_path):
    assert write_manifest([], tmp_path / "none.jsonl") == 0
    assert len(ManifestIndex.open(tmp_path / "none.jsonl")) == 0


def test_writing_that_fails_leaves_what_was_there(manifest):
    before = {path.name: path.read_bytes() for path in manifest.parent.iterdir()}

    def failing():
        yield from _cuts(3)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_manifest(failing(), manifest)
    assert {path.name: path.read_bytes() for path in manifest.parent.iterdir()} == before


def test_building_needs_no_memory_for_the_rows(tmp_path, monkeypatch):
    assert ROW.itemsize < 200
    monkeypatch.setattr(index_module, "_BLOCK_ROWS", 500)
    line = json.dumps(_cuts(2)[1].to_dict()).encode() + b"\n"
    peaks = []
    for num_rows in (1_000, 20_000):
        (tmp_path / "many.jsonl").write_bytes(line * num_rows)
        tracemalloc.start()
        build_index(tmp_path / "many.jsonl")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000  # 20,000 rows alone are 480,000 bytes
    index = ManifestIndex.open(tmp_path / "many.jsonl")
    assert (len(index), index.read(19_999).id) == (20_000, "cut-1")


def test_a_pickle_carries_no_rows_and_still_reads(manifest):
    index = ManifestIndex.open(manifest)
    pickled = pickle.dumps(index)
    assert len(pickled) < 300 + len(str(manifest))
    assert pickle.loads(pickled).read(7) == index.read(7)


def _read_all(index: ManifestIndex, order: list[int]) -> None:
    assert all(index.read(row).id == f"cut-{row}" for row in order)


def test_forked_processes_share_an_open_index(manifest):
    index = ManifestIndex.open(manifest)
    index.read(0)  # the descriptor is open before the fork
    context = multiprocessing.get_context("fork")
    orders = [np.random.default_rng(seed).permutation(np.tile(np.arange(40), 75)).tolist() for seed in range(4)]
    processes = [context.Process(target=_read_all, args=(index, order)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
