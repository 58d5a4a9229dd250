"""What `prepare` starts from: a LibriSpeech tree, a manifest, or a tree with the predecessor's TSV.

Shard by shard, in the same order every time; nothing is held in memory but where the shards begin.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import soundfile
from lhotse.recipes.librispeech import parse_alignments

from core.data.index import ManifestIndex
from core.data.reading import BadSample, Place, place_of

TRANSCRIPTS = "*.trans.txt"
TSV_HEADER = "rel_path\tnum_samples\tduration_sec\n"


class Utterance(NamedTuple):
    """A clip to prepare. `rel_path`: where its FLAC goes. `supervisions`: as in a manifest's line."""

    rel_path: str
    sample_id: str
    path: str
    place: Place | None  # None: the whole file, all its channels averaged
    supervisions: list[dict[str, Any]]

    def audio(self) -> Place:
        """Return where the audio is; ValueError for a file without a readable header."""
        if self.place is not None:
            return self.place
        try:
            info = soundfile.info(self.path)
        except (soundfile.SoundFileError, OSError) as error:
            raise BadSample(self.sample_id, f"cannot be read: {error}", self.path) from None
        channels = list(range(info.channels))
        return Place(self.sample_id, self.path, 0.0, info.frames / info.samplerate, info.samplerate, channels, 0)


class CorpusPart(Protocol):
    """The material of one manifest."""

    @property
    def name(self) -> str: ...
    @property
    def num_shards(self) -> int: ...
    def utterances(self, shard: int) -> Iterator[Utterance | BadSample]: ...
    def describe(self) -> str:
        """Return a text that changes when another corpus is meant."""
        ...

    def text_files(self) -> list[Path]:
        """Return the files that say what is said; a corpus is another one when their content is."""
        ...

    @property
    def transcripts(self) -> list[tuple[Path, str]]:
        """The files of the tree to copy along, and where to."""
        ...


def open_parts(source: Path, *, shard_size: int) -> list[CorpusPart]:
    """Return the parts of a corpus. ValueError for one without transcripts, or that is none."""
    if source.suffix == ".jsonl":
        return [ManifestPart(ManifestIndex.open(source), shard_size)]
    if source.suffix == ".tsv":
        return [TsvPart.open(source, shard_size)]
    if not source.is_dir():
        raise ValueError(f"prepare.input: {source}: no such folder, manifest (.jsonl) or list (.tsv)")
    root = source / "LibriSpeech" if (source / "LibriSpeech").is_dir() else source
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and next(folder.rglob(TRANSCRIPTS), None))
    if not folders:
        raise ValueError(f"prepare.input: {root}: no part of LibriSpeech: no folder in it holds a {TRANSCRIPTS}")
    return [TreePart.open(root, folder, shard_size) for folder in folders]


@dataclass(frozen=True)
class ManifestPart:
    """The cuts of a manifest. A cut that is its whole file keeps the file's place in the tree."""

    index: ManifestIndex
    shard_size: int

    @property
    def name(self) -> str:
        return self.index.manifest.stem

    @property
    def num_shards(self) -> int:
        return -(-len(self.index) // self.shard_size)

    @property
    def transcripts(self) -> list[tuple[Path, str]]:
        return []

    def describe(self) -> str:
        return f"{self.index.manifest.resolve()}, {len(self.index)} cuts"

    def text_files(self) -> list[Path]:
        return [self.index.manifest]

    def utterances(self, shard: int) -> Iterator[Utterance | BadSample]:
        for row in range(shard * self.shard_size, min(len(self.index), (shard + 1) * self.shard_size)):
            record = self.index.record(row)
            try:
                place = place_of(record)
            except BadSample as error:
                yield error
                continue
            yield Utterance(self._rel_path(record, place), str(record["id"]), place.path, place, record["supervisions"])

    def _rel_path(self, record: dict[str, Any], place: Place) -> str:
        path, folder = Path(place.path), self.index.manifest.parent
        is_whole = record["start"] == 0 and record["duration"] == record["recording"]["duration"]
        if is_whole and len(place.channels) == 1 and path.is_relative_to(folder):
            return path.relative_to(folder).with_suffix(".flac").as_posix()
        return f"{self.name}/{place.sample_id.replace('/', '-')}.flac"


@dataclass(frozen=True)
class TreePart:
    """A folder of LibriSpeech: chapters with a transcript file each, in the order of their paths."""

    root: Path
    folder: Path
    chapters: list[Path]
    shards: list[range]  # of chapters, of about as many utterances each

    @classmethod
    def open(cls, root: Path, folder: Path, shard_size: int) -> "TreePart":
        chapters = sorted(folder.rglob(TRANSCRIPTS), key=lambda path: path.parent.as_posix() + "/")
        shards, first, num = [], 0, 0
        for number, chapter in enumerate(chapters, start=1):
            with chapter.open("rb") as file:
                num += sum(1 for _ in file)
            if num >= shard_size or number == len(chapters):
                shards.append(range(first, number))
                first, num = number, 0
        return cls(root, folder, chapters, shards)

    @property
    def name(self) -> str:
        return f"librispeech_{self.folder.name}"

    @property
    def num_shards(self) -> int:
        return len(self.shards)

    @property
    def transcripts(self) -> list[tuple[Path, str]]:
        return [(chapter, chapter.relative_to(self.root).as_posix()) for chapter in self.chapters]

    def describe(self) -> str:
        return f"{self.folder.resolve()}, {len(self.chapters)} chapters"

    def text_files(self) -> list[Path]:
        return [path for chapter in self.chapters for path in (chapter, _alignments(chapter)) if path.exists()]

    def utterances(self, shard: int) -> Iterator[Utterance | BadSample]:
        for number in self.shards[shard]:
            texts, words = read_transcripts(self.chapters[number]), _words_beside(self.chapters[number])
            folder = self.chapters[number].parent
            audio = {path.stem: path for path in folder.iterdir() if path.suffix in (".flac", ".wav")}
            for sample_id in sorted(texts | audio):
                if sample_id not in audio:
                    yield BadSample(sample_id, "no audio file", str(folder))
                elif not texts.get(sample_id):
                    yield BadSample(sample_id, "no text", str(audio[sample_id]))
                else:
                    path = audio[sample_id]
                    rel_path = path.relative_to(self.root).with_suffix(".flac").as_posix()
                    yield _spoken(rel_path, sample_id, path, texts[sample_id], words.get(sample_id))


@dataclass(frozen=True)
class TsvPart:
    """The output of the predecessor's script: a TSV, beside the tree that it names, with the transcripts in it."""

    tsv: Path
    offsets: list[int]  # where each shard begins
    shard_size: int

    @classmethod
    def open(cls, tsv: Path, shard_size: int) -> "TsvPart":
        if not tsv.is_file():
            raise ValueError(f"prepare.input: {tsv}: no such file")
        offsets = []
        with tsv.open("rb") as file:
            if file.readline().decode() != TSV_HEADER:
                raise ValueError(f"{tsv}:1: expected the header {TSV_HEADER.split()}")
            number, place = 0, file.tell()
            for line in file:
                if number % shard_size == 0:
                    offsets.append(place)
                number, place = number + 1, place + len(line)
        part = cls(tsv, offsets, shard_size)
        if offsets and not any(isinstance(one, Utterance) for one in part.utterances(0)):
            raise ValueError(
                f"{tsv}: no transcript for the files of its first lines: {TRANSCRIPTS} must lie beside them, as in "
                "LibriSpeech; copy them there"
            )
        return part

    @property
    def name(self) -> str:
        return self.tsv.stem

    @property
    def num_shards(self) -> int:
        return len(self.offsets)

    @property
    def transcripts(self) -> list[tuple[Path, str]]:
        return []

    def describe(self) -> str:
        return f"{self.tsv.resolve()}, {self.tsv.stat().st_size} bytes"

    def text_files(self) -> list[Path]:
        with self.tsv.open(encoding="utf-8") as file:
            next(file)
            folders = {(self.tsv.parent / line.split("\t")[0]).parent for line in file}
        return [self.tsv, *(path for folder in sorted(folders) for path in sorted(folder.glob(TRANSCRIPTS)))]

    def utterances(self, shard: int) -> Iterator[Utterance | BadSample]:
        known: tuple[Path | None, dict[str, str]] = (None, {})
        with self.tsv.open("rb") as file:
            file.seek(self.offsets[shard])
            for line in islice(file, self.shard_size):
                rel_path = line.decode().split("\t")[0]
                path = self.tsv.parent / rel_path
                if known[0] != path.parent:
                    known = path.parent, _transcripts_of(path.parent)
                text = known[1].get(path.stem)
                if not text:
                    yield BadSample(path.stem, "no text", str(path))
                else:
                    yield _spoken(Path(rel_path).with_suffix(".flac").as_posix(), path.stem, path, text)


def read_transcripts(path: Path) -> dict[str, str]:
    """Read lines `sample_id words ...`."""
    lines = (line.strip().partition(" ") for line in path.read_text(encoding="utf-8").splitlines())
    return {sample_id: text.strip() for sample_id, _, text in lines if sample_id}


def _transcripts_of(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in folder.glob(TRANSCRIPTS):
        found |= read_transcripts(path)
    return found


def _words_beside(transcripts: Path) -> dict[str, list[Any]]:
    """Read the times of words by LibriSpeech-alignments, where its files were copied into the tree."""
    path = _alignments(transcripts)
    if not path.exists():
        return {}
    return {
        sample_id: [[item.symbol, item.start, item.duration, item.score] for item in items]
        for sample_id, items in parse_alignments(path).items()
    }


def _alignments(transcripts: Path) -> Path:
    return transcripts.with_name(transcripts.name.partition(".")[0] + ".alignment.txt")


def _spoken(rel_path: str, sample_id: str, path: Path, text: str, words: list[Any] | None = None) -> Utterance:
    supervision: dict[str, Any] = {
        "id": sample_id, "recording_id": sample_id, "start": 0.0, "channel": 0, "text": text, "language": "English",
        "speaker": sample_id.partition("-")[0],
    }  # fmt: skip
    if words is not None:
        supervision["alignment"] = {"word": words}
    return Utterance(rel_path, sample_id, str(path), None, [supervision])
