"""LibriSpeech, MLS and GigaSpeech in their real layouts become the cuts that they should be."""

import functools
import http.server
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from core.data.index import ManifestIndex, index_path
from manifests import gigaspeech, librilight, librispeech, mls
from tests.manifests import clips

ROOT = Path(__file__).parents[2]


def _assert_manifest(manifest: Path, expected: dict[str, tuple[str, int]]) -> None:
    index = ManifestIndex.open(manifest)
    cuts = [index.read(row) for row in range(len(index))]
    assert [cut.id for cut in cuts] == sorted(expected)
    assert {cut.id: (cut.supervisions[0].text, cut.num_samples) for cut in cuts} == expected
    np.testing.assert_allclose(index.durations_s, [expected[cut.id][1] / 16_000 for cut in cuts], rtol=1e-6)
    assert index.num_chars.tolist() == [len(expected[cut.id][0]) for cut in cuts]
    assert all(cut.load_audio().shape == (1, cut.num_samples) for cut in cuts)


def test_librispeech(tmp_path, capsys):
    expected = clips.librispeech(tmp_path, parts={"train-clean-5": 4, "dev-clean-2": 3})
    chapter = tmp_path / "LibriSpeech/train-clean-5/84/121123"
    (chapter / "84-121123-0003.flac").unlink()
    del expected["train-clean-5"]["84-121123-0003"]
    librispeech.main([str(tmp_path), str(tmp_path / "out"), "--workers", "2"])
    for part, utterances in expected.items():
        _assert_manifest(tmp_path / "out" / f"librispeech_{part}.jsonl", utterances)
    assert "1 dropped (no audio file)" in capsys.readouterr().out


def test_the_limited_splits_of_librilight_contain_each_other(tmp_path, capsys):
    folders = clips.librilight(tmp_path)
    lost = min((tmp_path / "librispeech_finetuning/1h/3/other").rglob("*.flac"))
    lost.unlink()
    del folders["1h/3"][lost.stem]
    librilight.main([str(tmp_path), str(tmp_path / "out"), "--workers", "1"])
    hour = {name: utterance for fold in range(6) for name, utterance in folders[f"1h/{fold}"].items()}
    expected = {"10min": folders["1h/0"], "1h": hour, "10h": hour | folders["9h"]}
    for part, utterances in expected.items():
        _assert_manifest(tmp_path / "out" / f"librilight_{part}.jsonl", utterances)
    assert [len(utterances) for utterances in expected.values()] == [4, 23, 27]
    printed = capsys.readouterr().out
    assert printed.count("1 dropped (no audio file)") == 2
    librilight.main([str(tmp_path / "librispeech_finetuning"), str(tmp_path / "out"), "--parts", "10h"])
    assert "librilight_10h: already done" in capsys.readouterr().out


def test_librilight_without_its_nine_hours_makes_what_there_is(tmp_path, capsys):
    folders = clips.librilight(tmp_path)
    shutil.rmtree(tmp_path / "librispeech_finetuning" / "9h" / "other")
    librilight.main([str(tmp_path), str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jsonl")) == [
        "librilight_10min.jsonl",
        "librilight_1h.jsonl",
    ]
    _assert_manifest(tmp_path / "out" / "librilight_10min.jsonl", folders["1h/0"])
    with pytest.raises(SystemExit):
        librilight.main([str(tmp_path), str(tmp_path / "out"), "--parts", "10h"])
    assert "has no 9h; --download fetches" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["flac", "opus"])
def test_mls(tmp_path, ending):
    expected = clips.mls(tmp_path, ending=ending)
    mls.main([str(tmp_path), str(tmp_path / "out"), "--workers", "1"])
    for split, utterances in expected.items():
        _assert_manifest(tmp_path / "out" / f"mls_polish_{split}.jsonl", utterances)
    cut = ManifestIndex.open(tmp_path / "out" / "mls_polish_dev.jsonl").read(0)
    assert (cut.supervisions[0].speaker, cut.supervisions[0].gender) == ("8758", "F")


def test_gigaspeech_cuts_utterances_out_of_a_long_recording(tmp_path, capsys):
    pytest.importorskip("speechcolab")
    expected = clips.gigaspeech(tmp_path)
    gigaspeech.main([str(tmp_path), str(tmp_path / "out"), "--parts", "XL", "XS", "--workers", "1"])
    assert capsys.readouterr().out.count("dropped (no speech)") == 2
    decoded = soundfile.read(tmp_path / "audio/podcast/P0000/POD0000000001.opus", dtype="float32")[0]
    for part, numbers in {"XL": [0, 2, 4], "XS": [0, 4]}.items():
        index = ManifestIndex.open(tmp_path / "out" / f"gigaspeech_{part}.jsonl")
        cuts = [index.read(row) for row in range(len(index))]
        assert [cut.id for cut in cuts] == [f"POD0000000001_S{number:07d}" for number in numbers]
        for cut in cuts:
            text, begin_s, samples = expected[cut.id]
            assert cut.supervisions[0].text == text  # the tags are normalized where the text is used
            assert (cut.supervisions[0].start, cut.num_samples) == (0.0, len(samples))
            begin = round(begin_s * 16_000)
            np.testing.assert_allclose(cut.load_audio()[0], decoded[begin : begin + len(samples)], atol=1e-3)
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == []


def test_gigaspeech_cleanup_deletes_archives_and_nothing_else(tmp_path):
    kept = ["audio/P0000/POD0000000001.opus", "GigaSpeech.json", "audio/P0001.tgz"]
    archives = ["audio/P0000.tgz.aes", "audio/P0000.tgz", "GigaSpeech.json.gz.aes", "GigaSpeech.json.gz"]
    for name in kept + archives:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "files.yaml").write_text("metadata:\n  GigaSpeech.json.gz.aes: 0\npodcast:\n  audio/P0000.tgz.aes: 1\n")
    gigaspeech.delete_archives(tmp_path)
    assert all((tmp_path / name).exists() for name in kept)
    assert not any((tmp_path / name).exists() for name in archives)


_HANGS_AT_THE_SECOND_PART = """
import sys, time
from manifests import librispeech
load = librispeech._load
def hanging(corpus, part, workers):
    if part == "train-clean-5":
        time.sleep(600)
    return load(corpus, part, workers=workers)
librispeech._load = hanging
librispeech.main(sys.argv[1:])
"""


def test_killed_half_way_and_started_again(tmp_path):
    expected = clips.librispeech(tmp_path, parts={"dev-clean-2": 2, "train-clean-5": 2})
    out = tmp_path / "out"
    out.mkdir()
    leftover = out / ".librispeech_train-clean-5.jsonl.abc123"
    leftover.write_text("half a manifest")
    arguments = [str(tmp_path), str(out), "--parts", "dev-clean-2", "train-clean-5"]
    process = subprocess.Popen([sys.executable, "-c", _HANGS_AT_THE_SECOND_PART, *arguments], cwd=ROOT)
    first = out / "librispeech_dev-clean-2.jsonl"
    try:
        while not index_path(first).exists():
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(SystemExit, match="another preparation"):
            librispeech.main(arguments)
    finally:
        process.kill()
        process.wait()
    before = first.stat()
    librispeech.main(arguments)
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    for part, utterances in expected.items():
        _assert_manifest(out / f"librispeech_{part}.jsonl", utterances)
    assert not leftover.exists()


@pytest.fixture
def site(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder and the address where an HTTP server offers it."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_librispeech_is_fetched_once_and_cleaned_up(tmp_path, site):
    folder, address = site
    expected = clips.librispeech(tmp_path / "origin", parts={"dev-clean-2": 2})
    (folder / "31").mkdir()
    with tarfile.open(folder / "31" / "dev-clean-2.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "origin" / "LibriSpeech", arcname="LibriSpeech")
    arguments = [str(tmp_path / "corpus"), str(tmp_path / "out"), "--parts", "dev-clean-2", "--download"]
    librispeech.main([*arguments, "--site", address, "--cleanup"])
    _assert_manifest(tmp_path / "out" / "librispeech_dev-clean-2.jsonl", expected["dev-clean-2"])
    assert not (tmp_path / "corpus" / "dev-clean-2.tar.gz").exists()
    (folder / "31" / "dev-clean-2.tar.gz").unlink()
    librispeech.main([*arguments, "--site", address])  # nothing is left to fetch


def test_librilight_is_fetched_once_and_cleaned_up(tmp_path, site):
    folder, address = site
    folders = clips.librilight(tmp_path / "origin")
    with tarfile.open(folder / "librispeech_finetuning.tgz", "w:gz") as archive:
        archive.add(tmp_path / "origin" / "librispeech_finetuning", arcname="librispeech_finetuning")
    arguments = [str(tmp_path / "corpus"), str(tmp_path / "out"), "--workers", "1", "--site", address, "--download"]
    librilight.main([*arguments, "--parts", "10min", "--cleanup"])
    assert not (tmp_path / "corpus" / "librispeech_finetuning.tgz").exists()
    (folder / "librispeech_finetuning.tgz").unlink()
    librilight.main(arguments)  # nothing is left to fetch
    _assert_manifest(tmp_path / "out" / "librilight_10min.jsonl", folders["1h/0"])
    assert (tmp_path / "out" / "librilight_10h.jsonl").exists()


def test_mls_is_fetched_once_and_cleaned_up(tmp_path, site):
    folder, address = site
    expected = clips.mls(tmp_path / "origin", ending="opus")
    with tarfile.open(folder / "mls_polish_opus.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "origin" / "mls_polish_opus", arcname="mls_polish_opus")
    arguments = [str(tmp_path / "corpus"), str(tmp_path / "out"), "--parts", "polish", "--workers", "1"]
    mls.main([*arguments, "--download", "--site", address, "--cleanup"])
    _assert_manifest(tmp_path / "out" / "mls_polish_train.jsonl", expected["train"])
    assert not (tmp_path / "corpus" / "mls_polish_opus.tar.gz").exists()
    (folder / "mls_polish_opus.tar.gz").unlink()
    mls.main([*arguments, "--download", "--site", address])


@pytest.mark.parametrize(
    ("corpus", "arguments", "message"),
    [
        (librispeech, ["CORPUS", "OUT"], "no part of LibriSpeech"),
        (librispeech, ["CORPUS", "OUT", "--parts", "dev-clean"], "no dev-clean"),
        (librispeech, ["CORPUS/none", "OUT"], "no such folder"),
        (librispeech, ["CORPUS", "OUT", "--cleanup"], "give both"),
        (librispeech, ["CORPUS", "OUT", "--download"], "needs --parts"),
        (librilight, ["CORPUS", "OUT"], "no 1h/0"),
        (mls, ["CORPUS", "OUT"], "no folder mls_LANGUAGE"),
        (gigaspeech, ["CORPUS", "OUT"], "no GigaSpeech.json"),
        (gigaspeech, ["CORPUS", "OUT", "--download"], "--password-file"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, capsys, corpus, arguments, message):
    arguments = [one.replace("CORPUS", str(tmp_path)).replace("OUT", str(tmp_path / "out")) for one in arguments]
    with pytest.raises(SystemExit) as stopped:
        corpus.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
