"""festvox-ru from a package of the real layout: cuts as the demo corpus has them, parts that do not move, and what is
wrong with a package is said."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut

from core.data.index import ManifestIndex
from manifests import festvox_ru
from manifests.split import shared_trigrams, words_of
from tests.manifests.clips import DEMO, SAMPLE_RATE_HZ

COPYRIGHT = "Files: *\nLicense: BSD-like\n .\n  Free of charge.\n\nFiles: debian/*\nLicense: GPL-3\n Free.\n"
NUM_RECORDED = 2  # sentences of each part that the package of these tests has recordings of


def name_of(cut: MonoCut) -> str:
    return cut.id.removeprefix("russian-")


def stressed(text: str) -> str:
    """The text with a stress mark before its last vowel, as the package writes it."""
    return re.sub("([\u0430\u0435\u0438\u043e\u0443])(?=[^\u0430\u0435\u0438\u043e\u0443]*$)", r"+\1", text)


@pytest.fixture(scope="module")
def demo() -> dict[str, list[MonoCut]]:
    return {part: list(ManifestIndex.open(DEMO / f"russian_{part}.jsonl").cuts()) for part in festvox_ru.PARTS}


@pytest.fixture
def recorded(demo) -> dict[str, list[MonoCut]]:
    """The shortest sentences of each part of the demo corpus, in order."""
    shortest = {part: sorted(cuts, key=lambda cut: cut.duration)[:NUM_RECORDED] for part, cuts in demo.items()}
    return {part: sorted(cuts, key=name_of) for part, cuts in shortest.items()}


@pytest.fixture
def tree(tmp_path, demo, recorded) -> Path:
    """What the package has inside: the texts of the demo corpus, and the recordings and labels of a few of them."""
    tree = tmp_path / "tree"
    for folder in ("etc", "wav", "lab"):
        (tree / festvox_ru.VOICE / folder).mkdir(parents=True)
    texts = {name_of(cut): cut.supervisions[0].text for cuts in demo.values() for cut in cuts}
    lines = [f'( {name} "{stressed(text)}" )\n' for name, text in sorted(texts.items(), reverse=True)]
    (tree / festvox_ru.VOICE / "etc/txt.done.data").write_text("".join(lines), encoding="utf-8")
    for cut in (cut for cuts in recorded.values() for cut in cuts):
        samples = soundfile.read(cut.recording.sources[0].source, dtype="int16")[0]
        soundfile.write(tree / festvox_ru.VOICE / f"wav/{name_of(cut)}.wav", samples, SAMPLE_RATE_HZ)
        ends = "".join(f"{one.end:.5f} 125 {one.symbol}\n" for one in cut.supervisions[0].alignment["phone"])
        (tree / festvox_ru.VOICE / f"lab/{name_of(cut)}.lab").write_text(f"separator ;\nnfields 1\n#\n{ends}")
    (tree / "usr/share/doc/festvox-ru").mkdir(parents=True)
    (tree / "usr/share/doc/festvox-ru/copyright").write_text(COPYRIGHT)
    return tree


@pytest.fixture
def packages(tmp_path) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder


def pack(tree: Path, packages: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    (tree / "DEBIAN").mkdir()
    control = "Package: festvox-ru\nVersion: 0.5\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: B\n"
    (tree / "DEBIAN/control").write_text(control)
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, packages / "festvox-ru_0.5_all.deb"]
    subprocess.run(command, check=True, capture_output=True)


def install(folder: Path, program: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script before all other programs of that name."""
    folder.mkdir()
    (folder / program).write_text(f"#!/bin/sh\n{script}\n")
    (folder / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_cuts_are_those_of_the_demo_corpus(tmp_path, capfd, demo, recorded, tree, packages):
    pack(tree, packages)
    out = tmp_path / "out"
    festvox_ru.main([str(out), "--packages", str(packages)])
    printed = capfd.readouterr().out
    assert "festvox-ru_0.5_all.deb is another version than the one that is known" in printed
    for part, expected in recorded.items():
        cuts = list(ManifestIndex.open(out / f"russian_{part}.jsonl").cuts())
        assert [cut.id for cut in cuts] == [cut.id for cut in expected]
        assert f"{len(demo[part]) - NUM_RECORDED} dropped (no audio file)" in printed
        for cut, original in zip(cuts, expected, strict=True):
            source, original_source = cut.recording.sources[0], original.recording.sources[0]
            assert Path(source.source) == (out / "audio" / f"{name_of(cut)}.ogg").resolve()
            written, read = soundfile.read(source.source)[0], soundfile.read(original_source.source)[0]
            assert np.corrcoef(written, read)[0, 1] > 0.99
            source.source = original_source.source
            assert cut.to_dict() == original.to_dict()  # text, times of phones and words, lengths, names
    assert (out / "audio/LICENSE").read_text() == "\n Free of charge.\n"


def test_the_package_is_fetched_for_what_is_missing_only(tmp_path, capfd, monkeypatch, recorded, tree, packages):
    pack(tree, packages)
    out = tmp_path / "out"
    fetch = f'[ "$*" = "download festvox-ru" ] && cp "{packages}"/*.deb .'
    install(tmp_path / "online", "apt-get", fetch, monkeypatch)
    festvox_ru.main([str(out), "--download"])
    monkeypatch.undo()
    (out / "russian_dev.jsonl").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.ogg")}
    install(tmp_path / "offline", "apt-get", "exit 100", monkeypatch)
    with pytest.raises(SystemExit, match=r"apt-get cannot fetch it; .* \(apt-get: exit code 100\)"):
        festvox_ru.main([str(out), "--download"])
    festvox_ru.main([str(out), "--packages", str(packages)])
    assert "russian_train: already done, 2 utterances" in capfd.readouterr().out
    changed = {path.stem for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {name_of(cut) for cut in recorded["dev"]}
    festvox_ru.main([str(out), "--download"])  # nothing is left to fetch
    assert "russian_dev: already done, 2 utterances" in capfd.readouterr().out


def test_a_sentence_without_labels_is_counted(tmp_path, capfd, recorded, tree, packages):
    unlabeled, labeled = recorded["test"]
    (tree / festvox_ru.VOICE / f"lab/{name_of(unlabeled)}.lab").unlink()
    pack(tree, packages)
    festvox_ru.main([str(tmp_path / "out"), "--packages", str(packages)])
    assert [cut.id for cut in ManifestIndex.open(tmp_path / "out/russian_test.jsonl").cuts()] == [labeled.id]
    printed = capfd.readouterr().out
    assert "russian_test: 1 utterances" in printed and printed.count("1 dropped (no phone labels)") == 1


def test_demo_sentences_keep_their_parts(demo):
    in_demo = {name_of(cut): (part, cut.supervisions[0].text) for part in demo for cut in demo[part]}
    words = np.random.default_rng(0).permutation(50_000).astype(str)
    added = {f"ru_{1000 + number}": " ".join(words[12 * number : 12 * number + 12]) for number in range(500)}
    texts = {name: text for name, (_, text) in in_demo.items()} | added
    parts = festvox_ru.split(dict(reversed(list(texts.items()))))
    assert sorted(name for names in parts.values() for name in names) == sorted(texts)
    for part, names in parts.items():
        assert names == sorted(names)
        assert {name for name in names if name in in_demo} == {name for name in in_demo if in_demo[name][0] == part}
    # 900 and 450 words of the rest, in sentences of 12
    assert [len(added.keys() & set(parts[part])) for part in ("test", "dev", "train")] == [75, 38, 500 - 75 - 38]


def test_near_copies_stay_together_outside_the_demo_corpus(demo):
    texts = {name_of(cut): cut.supervisions[0].text for cuts in demo.values() for cut in cuts}
    for number in range(200):
        for variant in ("morning", "evening"):
            texts[f"ru_{1000 + len(texts)}"] = f"a{number} b{number} c{number} d{number} in the {variant}"
    parts = festvox_ru.split(texts)
    words = {part: [words_of(texts[name]) for name in names] for part, names in parts.items()}
    assert max(shared_trigrams(one, two) for one in words["test"] for two in words["train"]) < 0.5


def test_phones(tmp_path):
    labels = tmp_path / "ru_0001.lab"
    labels.write_text("separator ;\nnfields 1\n#\n0.34200 125 pau\n\t0.39200 125 k\n    0.42249 125 ay\n")
    phones = festvox_ru.read_phones(labels)
    assert [(one.symbol, one.start, one.duration) for one in phones] == [
        ("pau", 0.0, 0.342), ("k", 0.342, 0.05), ("ay", 0.392, 0.03),
    ]  # fmt: skip


@pytest.mark.parametrize("line", ["0.2 125 k", "0.34 125 k", "0.4 125", "soon 125 k"])
def test_labels_that_make_no_sense_are_shown(tmp_path, line):
    labels = tmp_path / "ru_0001.lab"
    labels.write_text(f"#\n0.34000 125 pau\n{line}\n")
    with pytest.raises(ValueError, match=rf"ru_0001.lab: got '{line}', expected .* after 0.34 s"):
        festvox_ru.read_phones(labels)


def test_texts_that_make_no_sense_are_shown(tree):
    sentences = tree / festvox_ru.VOICE / "etc/txt.done.data"
    sentences.write_text('( ru_0001 "One." )\n( ru_0002 Two. )\n')
    with pytest.raises(ValueError, match=r"txt.done.data:2: got '\( ru_0002 Two. \)', expected"):
        festvox_ru.read_texts(tree)


@pytest.mark.parametrize(
    "samples, sample_rate_hz, got",
    [
        (np.zeros(800, np.int16), 8_000, "8000 Hz and 1 channels"),
        (np.zeros((1600, 2), np.int16), SAMPLE_RATE_HZ, "16000 Hz and 2 channels"),
    ],
)
def test_other_audio_is_refused(tmp_path, tree, recorded, samples, sample_rate_hz, got):
    cut = recorded["dev"][0]
    soundfile.write(tree / festvox_ru.VOICE / f"wav/{name_of(cut)}.wav", samples, sample_rate_hz)
    audio = tmp_path / "audio.ogg"
    with pytest.raises(ValueError, match=rf"{name_of(cut)}.wav: got {got}, expected 16000 Hz and one channel"):
        festvox_ru.read_sentence(tree, name_of(cut), text="Text", audio=audio)
    assert not audio.exists()


def test_a_damaged_or_missing_package_is_named(tmp_path, packages):
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    arguments = [str(tmp_path / "out"), "--packages", str(packages)]
    with pytest.raises(SystemExit, match=r"0 files festvox-ru_\*.deb, expected one; --download fetches them"):
        festvox_ru.main(arguments)
    (packages / "festvox-ru_0.5_all.deb").write_bytes(b"half a package")
    with pytest.raises(SystemExit, match=r"festvox-ru_0.5_all.deb: damaged \(dpkg-deb: exit code 2\)"):
        festvox_ru.main(arguments)
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_systems_without_the_programs_of_debian_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="apt-get is not installed; it comes with Debian and Ubuntu"):
        festvox_ru.main([str(tmp_path / "out"), "--download"])


def test_a_package_without_the_licence_is_refused(tmp_path, tree, packages):
    (tree / "usr/share/doc/festvox-ru/copyright").write_text(COPYRIGHT.replace("BSD-like", "MIT"))
    pack(tree, packages)
    with pytest.raises(ValueError, match="usr/share/doc/festvox-ru/copyright: no licence BSD-like"):
        festvox_ru.main([str(tmp_path / "out"), "--packages", str(packages)])
