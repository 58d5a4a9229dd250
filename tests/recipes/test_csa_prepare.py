"""Prepared corpora: the predecessor's files to the letter, made once, whatever interrupts it, and of nothing else."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import recipes.csa_stage1.prepare as prepare
from core.data.index import ManifestIndex, write_manifest
from core.data.pcm_cache import PcmCache
from core.data.reading import read_cut
from core.rundir.exit_codes import ExitCode
from core.rundir.files import DONE
from core.rundir.ledger import pieces_so_far
from core.rundir.whole_files import read_json, read_records
from core.text.words import words_of
from recipes.csa_stage1.preparation import Preparation
from recipes.csa_stage1.trimming import trimmed
from tests.manifests.clips import demo_cuts, librispeech
from tests.recipes import runs

RATE = 16000


def made(tmp_path: Path, inputs: list[Path], *words: str, **options: Any) -> tuple[list[int | None], str]:
    """One link of a preparation into `tmp_path/out`."""
    config = tmp_path / "prepare.yaml"
    listed = ", ".join(map(str, inputs))
    config.write_text(
        f"run:\n  name: corpus\n  device: cpu\nprepare:\n  input: [{listed}]\n  output: {tmp_path / 'out'}\n"
        "  workers: 1\n  shard_size: 2\n"
    )
    return runs.link(config, tmp_path / "runs", *words, recipe=prepare, **options)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three parts of LibriSpeech, with a clip that has quiet ends, a silent one, and some without text or audio."""
    librispeech(tmp_path, parts={"dev-clean": 3, "dev-other": 1, "test-clean": 2})
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
    path = chapter / "84-121123-0001.flac"
    samples = soundfile.read(path, dtype="float32")[0]
    quiet = np.random.default_rng(0).uniform(-1e-4, 1e-4, 3 * RATE).astype(np.float32)
    soundfile.write(path, np.concatenate([quiet, samples, quiet]), RATE)
    soundfile.write(chapter / "84-121123-0007.flac", np.zeros(RATE), RATE)
    soundfile.write(chapter / "84-121123-0008.flac", quiet, RATE)
    with (chapter / "84-121123.trans.txt").open("a") as file:
        file.write("84-121123-0007 SILENCE\n84-121123-0009 NOBODY READS THIS\n84-121123-0008\n")
    return tmp_path / "LibriSpeech"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def products(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(folder).items() if not name.startswith(".prepare")}


def test_a_librispeech_tree_comes_out_as_the_predecessor_makes_it(tmp_path: Path, tree: Path) -> None:
    codes, text = made(tmp_path, [tree.parent])
    assert codes == [ExitCode.DONE], text
    out = tmp_path / "out"
    lines = (out / "manifest.tsv").read_text().splitlines()
    assert lines[0] == "rel_path\tnum_samples\tduration_sec"
    paths = [line.split("\t")[0] for line in lines[1:]]
    assert paths == sorted(paths) and len(paths) == 6
    for line in lines[1:]:
        path, num, seconds = line.split("\t")
        source, _ = soundfile.read(tree / path, dtype="float32")
        begin, end = trimmed(source, top_db=60.0)
        samples, rate = soundfile.read(out / path, dtype="float32")
        assert rate == RATE and int(num) == end - begin == len(samples) and seconds == f"{len(samples) / RATE:.6f}"
        assert np.abs(samples - source[begin:end]).max() <= 2**-15
    quiet = next(line for line in lines if "84-121123-0001" in line and "dev-clean" in line)
    assert int(quiet.split("\t")[1]) < soundfile.info(tree / quiet.split("\t")[0]).frames - 5 * RATE, (
        "its ends are gone"
    )
    transcripts = "dev-clean/84/121123/84-121123.trans.txt"
    assert (out / transcripts).read_bytes() == (tree / transcripts).read_bytes()
    index = ManifestIndex.open(out / "librispeech_dev-clean.jsonl")
    texts = dict(line.split(" ", 1) for line in (tree / transcripts).read_text().splitlines() if " " in line)
    assert {cut.id: cut.supervisions[0].text for cut in index.cuts()} == {
        name: texts[name] for name in ("84-121123-0000", "84-121123-0001", "84-121123-0002")
    }
    assert all(len(read_cut(cut, sample_rate_hz=RATE).samples) == cut.num_samples for cut in index.cuts())
    skipped = {record["sample_id"]: record["reason"] for record in read_records(out / "skipped.jsonl")}
    assert skipped.keys() == {"84-121123-0007", "84-121123-0008", "84-121123-0009"}
    assert skipped["84-121123-0008"] == "no text" and skipped["84-121123-0009"] == "no audio file"
    assert "silence" in skipped["84-121123-0007"] and "skipped 1 clips: no text" in text


def test_files_that_are_missing_or_empty_are_listed(tmp_path: Path) -> None:
    cut = demo_cuts(1)[0]
    (tmp_path / "empty.wav").write_bytes(b"")
    cuts = [cut, runs.of_file(cut, tmp_path / "empty.wav"), runs.of_file(cut, tmp_path / "missing.wav")]
    write_manifest(cuts, tmp_path / "in.jsonl")
    codes, text = made(tmp_path, [tmp_path / "in.jsonl"])
    assert codes == [ExitCode.DONE], text
    skipped = {record["sample_id"]: record["reason"] for record in read_records(tmp_path / "out" / "skipped.jsonl")}
    assert skipped == {"empty": "is empty (0 bytes)", "missing": "no such file"}
    assert len(ManifestIndex.open(tmp_path / "out" / "in.jsonl")) == 1


def test_a_manifest_keeps_texts_and_words_at_their_new_times(tmp_path: Path) -> None:
    source = runs.DEMO / "russian_dev.jsonl"
    codes, text = made(tmp_path, [source], "prepare.pcm_cache=true", "prepare.trim_top_db=30")
    assert codes == [ExitCode.DONE], text
    before, after = ManifestIndex.open(source), ManifestIndex.open(tmp_path / "out" / "russian_dev.jsonl")
    cache = PcmCache.open(after)
    moved = []
    for row in range(len(before)):
        old, new = words_of(before.record(row)), words_of(after.record(row))
        assert old.texts == new.texts and new.is_aligned
        samples = read_cut(before.read(row), sample_rate_hz=RATE).samples
        begin, end = trimmed(samples, top_db=30.0)
        kept = cache.read(row)
        assert np.abs(kept - samples[begin:end]).max() <= 2**-15
        assert np.array_equal(kept, read_cut(after.read(row), sample_rate_hz=RATE).samples)
        inside = slice(1, len(old.texts) - 1)
        assert new.starts_s[inside] == pytest.approx(old.starts_s[inside] - begin / RATE, abs=1e-3)
        assert new.ends_s[-1] <= after.durations_s[row] + 1e-6
        moved.append(begin)
    assert max(moved) > 0
    assert (tmp_path / "out" / "russian" / "ru_0003.flac").exists() or list((tmp_path / "out").glob("russian/*.flac"))


def test_a_segment_of_a_longer_recording_has_a_file_of_its_own(tmp_path: Path) -> None:
    cut = demo_cuts(1)[0]
    parts = []
    for name, offset in (("a/1", 0.0), ("a/2", 0.4)):
        part = cut.truncate(offset=offset, duration=0.5)
        part.id, part.supervisions = name, [cut.supervisions[0]]
        parts.append(part)
    write_manifest(parts, tmp_path / "in.jsonl")
    codes, text = made(tmp_path, [tmp_path / "in.jsonl"], "prepare.trim_top_db=null")
    assert codes == [ExitCode.DONE], text
    whole = read_cut(cut, sample_rate_hz=RATE).samples
    for name, first in (("a-1", 0), ("a-2", 6400)):
        samples = soundfile.read(tmp_path / "out" / "in" / f"{name}.flac", dtype="float32")[0]
        assert np.abs(samples - whole[first : first + 8000]).max() <= 2**-15


def _nth(number: int, function: Callable[..., Any], signal_number: int) -> Callable[..., Any]:
    calls = 0

    def called(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal_number)
        return function(*arguments, **settings)

    return called


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_preparation_goes_on(
    how: int, tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Preparation, "_make", _nth(2, Preparation._make, how))
        codes, text = made(tmp_path, [tree])
        assert codes == [-9 if how == signal.SIGKILL else ExitCode.CONTINUE], text
    lists = sorted((tmp_path / "out" / ".prepare").glob("*.jsonl"))
    assert len(lists) == (1 if how == signal.SIGKILL else 2)
    if how == signal.SIGTERM:
        assert pieces_so_far(tmp_path / "runs" / "corpus") == 2, "progress, so that the chain goes on"
    before = {path: path.stat().st_mtime_ns for path in lists}
    codes, text = made(tmp_path, [tree])
    assert codes == [ExitCode.DONE], text
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was made is not made again"
    (tmp_path / "other").mkdir()
    assert made(tmp_path / "other", [tree])[0] == [ExitCode.DONE]
    assert products(tmp_path / "out") == products(tmp_path / "other" / "out")
    assert not [name for name in files(tmp_path / "out") if Path(name).name.startswith(".8")]


def test_a_finished_preparation_does_nothing_and_damage_is_made_good(tmp_path: Path, tree: Path) -> None:
    assert made(tmp_path, [tree])[0] == [ExitCode.DONE]
    before = files(tmp_path / "out")
    codes, text = made(tmp_path, [tree])
    assert codes == [ExitCode.DONE] and "nothing to do" in text and files(tmp_path / "out") == before
    path = next((tmp_path / "out" / "dev-clean").rglob("*.flac"))
    path.write_bytes(path.read_bytes()[:-100])
    codes, text = made(tmp_path, [tree])
    assert codes == [ExitCode.DONE] and "is not whole" in text, text
    assert products(tmp_path / "out") == {name: one for name, one in before.items() if not name.startswith(".prepare")}
    assert (tmp_path / "runs" / "corpus" / DONE).exists()


def test_other_settings_are_refused_or_make_it_anew(tmp_path: Path, tree: Path) -> None:
    assert made(tmp_path, [tree])[0] == [ExitCode.DONE]
    for run in ("run.name=corpus", "run.name=another"):
        codes, text = made(tmp_path, [tree], "prepare.trim_top_db=null", run)
        assert codes == [ExitCode.CONFIG], text
        assert "trim_top_db: 60.0 -> None" in text and "prepare.overwrite=true" in text
    codes, text = made(tmp_path, [tree], "prepare.trim_top_db=null", "prepare.overwrite=true")
    assert codes == [ExitCode.DONE], text
    assert read_json(tmp_path / "out" / "prepare.json")["trim_top_db"] is None
    index = ManifestIndex.open(tmp_path / "out" / "librispeech_dev-clean.jsonl")
    source = tree / "dev-clean" / "84" / "121123" / "84-121123-0001.flac"
    assert index.read(1).num_samples == soundfile.info(source).frames
    codes, text = made(tmp_path, [tree], "prepare.trim_top_db=null", "prepare.overwrite=true")
    assert "nothing to do" in text, "overwrite makes nothing twice"


@pytest.mark.parametrize("kind", ["tree", "tsv", "manifest"])
def test_corrected_transcripts_are_another_corpus(kind: str, tmp_path: Path, tree: Path) -> None:
    """Of the same number and size, and of an age that says nothing."""
    source, edited = tree, tree / "test-clean" / "84" / "121123" / "84-121123.trans.txt"
    word = edited.read_text().split()[1]
    if kind != "tree":
        (tmp_path / "first").mkdir()
        assert made(tmp_path / "first", [tree], "run.name=first")[0] == [ExitCode.DONE]
        source = tmp_path / "first" / "out" / ("manifest.tsv" if kind == "tsv" else "librispeech_test-clean.jsonl")
        edited = source if kind == "manifest" else source.parent / edited.relative_to(tree)
    assert made(tmp_path, [source])[0] == [ExitCode.DONE]
    times = edited.stat()
    os.utime(edited, (times.st_atime + 100, times.st_mtime + 100))
    assert "nothing to do" in made(tmp_path, [source])[1], "the same content at another time"
    edited.write_text(edited.read_text().replace(word, "Q" * len(word), 1))
    os.utime(edited, (times.st_atime, times.st_mtime))
    codes, text = made(tmp_path, [source])
    assert codes == [ExitCode.CONFIG] and "input_hashes: " in text and "prepare.overwrite=true" in text, text
    codes, text = made(tmp_path, [source], "prepare.overwrite=true")
    assert codes == [ExitCode.DONE] and "nothing to do" not in text, text
    manifests = [path for path in (tmp_path / "out").glob("*.jsonl") if path.name != "skipped.jsonl"]
    texts = [cut.supervisions[0].text for path in manifests for cut in ManifestIndex.open(path).cuts()]
    assert sum("Q" * len(word) in text for text in texts) == 1


def test_an_output_from_before_hashes_were_kept_is_whole(tmp_path: Path, tree: Path) -> None:
    assert made(tmp_path, [tree])[0] == [ExitCode.DONE]
    path = tmp_path / "out" / "prepare.json"
    path.write_text(json.dumps({key: value for key, value in read_json(path).items() if key != "input_hashes"}))
    assert "nothing to do" in made(tmp_path, [tree])[1]


def test_two_ranks_make_what_one_makes(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "two").mkdir()
    assert made(tmp_path, [tree])[0] == [ExitCode.DONE]
    codes, text = made(tmp_path / "two", [tree], num_ranks=2)
    assert codes == [ExitCode.DONE] * 2, text
    assert text.count("skipped 1 clips: silence") == 1, "what all shards give is made by one of the ranks"
    assert products(tmp_path / "out") == products(tmp_path / "two" / "out")


def test_the_predecessors_tsv_is_read(tmp_path: Path, tree: Path) -> None:
    assert made(tmp_path, [tree])[0] == [ExitCode.DONE]
    again = tmp_path / "again"
    again.mkdir()
    codes, text = made(again, [tmp_path / "out" / "manifest.tsv"], "prepare.trim_top_db=null")
    assert codes == [ExitCode.DONE], text
    assert (again / "out" / "manifest.tsv").read_bytes() == (tmp_path / "out" / "manifest.tsv").read_bytes()
    assert len(ManifestIndex.open(again / "out" / "manifest.jsonl")) == 6
    for path in (tmp_path / "out").rglob("*.trans.txt"):
        path.unlink()
    codes, text = made(again, [tmp_path / "out" / "manifest.tsv"], "run.name=b", f"prepare.output={tmp_path / 'b'}")
    assert codes == [ExitCode.CONFIG] and "no transcript for the files of its first lines" in text, text


def test_alignments_beside_the_transcripts_are_read(tmp_path: Path, tree: Path) -> None:
    chapter = tree / "test-clean" / "84" / "121123"
    lines = (chapter / "84-121123.trans.txt").read_text().splitlines()
    name, words = lines[0].split(" ", 1)
    num = len(words.split())
    ends = [0.1 * (number + 1) for number in range(num + 1)]
    symbols = ",".join(["", *words.split()])
    line = f'{name} "{symbols}" "{",".join(f"{end:.2f}" for end in ends)}"\n'
    (chapter / "84-121123.alignment.txt").write_text(line)
    codes, text = made(tmp_path, [tree], "prepare.trim_top_db=null")
    assert codes == [ExitCode.DONE], text
    index = ManifestIndex.open(tmp_path / "out" / "librispeech_test-clean.jsonl")
    found = {index.record(row)["id"]: words_of(index.record(row)) for row in range(2)}
    assert (
        found[name].is_aligned and found[name].texts == words.split() and found[name].starts_s[0] == pytest.approx(0.1)
    )
    assert not found[next(other for other in found if other != name)].is_aligned


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["missing"], "no such folder, manifest"),
        (["."], r"no folder in it holds a *.trans.txt"),
        (["in.jsonl", "in.jsonl"], "2 manifests would be called in.jsonl"),
        (["bad.tsv"], "expected the header"),
    ],
)
def test_what_is_no_corpus_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    write_manifest(demo_cuts(1), tmp_path / "in.jsonl")
    (tmp_path / "bad.tsv").write_text("path\tsamples\n")
    codes, text = made(tmp_path, [tmp_path / name for name in names])
    assert codes == [ExitCode.CONFIG] and message in text, text
    assert not (tmp_path / "out").exists()


def test_words_by_a_trained_run(tmp_path: Path, config: Path) -> None:
    """An untrained one tells nothing true, but tells it in order, for every word and inside the clip."""
    codes, text = runs.link(config, tmp_path / "runs", "train.max_steps=2")
    assert codes == [ExitCode.DONE], text
    source = runs.DEMO / "english_dev.jsonl"
    write_manifest(list(ManifestIndex.open(source).cuts())[:4], tmp_path / "in.jsonl")
    codes, text = made(tmp_path, [tmp_path / "in.jsonl"], "prepare.aligner=tiny")
    assert codes == [ExitCode.DONE], text
    index = ManifestIndex.open(tmp_path / "out" / "in.jsonl")
    for row in range(4):
        record = index.record(row)
        items = record["supervisions"][0]["alignment"]["word"]
        assert " ".join(item[0] for item in items) == record["supervisions"][0]["text"]
        starts, ends = (np.array([item[1] for item in items]), np.array([item[1] + item[2] for item in items]))
        assert (starts <= ends + 1e-9).all() and (ends[:-1] <= starts[1:] + 1e-3).all()
        assert starts[0] >= 0 and ends[-1] <= record["duration"] + 1e-3
    assert "nothing to do" in made(tmp_path, [tmp_path / "in.jsonl"], "prepare.aligner=tiny")[1]
    (tmp_path / "runs" / "tiny" / DONE).unlink()
    codes, text = runs.link(config, tmp_path / "runs", "train.max_steps=3")
    assert codes == [ExitCode.DONE], text
    codes, text = made(tmp_path, [tmp_path / "in.jsonl"], "prepare.aligner=tiny")
    assert codes == [ExitCode.CONFIG] and re.search(r"aligner_weights: .*'step': 2.* -> .*'step': 3", text), text
    codes, text = made(tmp_path, [tmp_path / "in.jsonl"], "prepare.aligner=none", "prepare.overwrite=true")
    assert codes == [ExitCode.CONFIG] and "prepare.aligner=none is no run of lmu_gigaspeech" in text, text
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["aligner"] == "tiny", "nothing was touched"


def test_two_clips_of_one_name_are_refused(tmp_path: Path) -> None:
    """Recordings of two manifests whose folders have the same shape."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "same.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 9000), RATE)
        cut = runs.of_file(demo_cuts(1)[0], tmp_path / name / "same.wav")
        cut.recording.num_samples, cut.recording.duration, cut.duration = 9000, 9000 / RATE, 9000 / RATE
        write_manifest([cut], tmp_path / name / f"{name}.jsonl")
    codes, text = made(tmp_path, [tmp_path / "a" / "a.jsonl", tmp_path / "b" / "b.jsonl"])
    assert codes == [ExitCode.CONFIG] and "two clips would be same.flac" in text, text
    assert not (tmp_path / "out" / "manifest.tsv").exists()


def test_channels_are_averaged_and_a_clip_of_which_nothing_is_left_is_skipped(tmp_path: Path) -> None:
    librispeech(tmp_path, parts={"dev-clean": 2})
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
    rng = np.random.default_rng(0)
    left, right = rng.uniform(-0.4, 0.4, (2, RATE)).astype(np.float32)
    soundfile.write(chapter / "84-121123-0000.flac", np.stack([left, right], axis=1), RATE)
    soundfile.write(chapter / "84-121123-0001.flac", np.stack([left, -left], axis=1), RATE)
    codes, text = made(tmp_path, [tmp_path / "LibriSpeech"])
    assert codes == [ExitCode.DONE] and "skipped 1 clips: nothing is left after trimming" in text, text
    (cut,) = ManifestIndex.open(tmp_path / "out" / "librispeech_dev-clean.jsonl").cuts()
    assert np.abs(read_cut(cut, sample_rate_hz=RATE).samples - (left + right) / 2).max() < 2**-14
    assert [one["sample_id"] for one in read_records(tmp_path / "out" / "skipped.jsonl")] == ["84-121123-0001"]
