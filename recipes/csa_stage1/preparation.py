"""From a corpus to what training reads: trimmed FLAC files in the same tree, a TSV, and manifests with texts and words.

    OUTPUT/train-clean-100/103/1240/103-1240-0000.flac, 103-1240.trans.txt, ...
           manifest.tsv                        rel_path, num_samples, duration_sec: the predecessor's, sorted
           librispeech_train-clean-100.jsonl   and its index; with prepare.pcm_cache=true its cache
           skipped.jsonl                       what could not be used, and why
           prepare.json                        how all this was made

The work is done in shards; a shard's list of files appears when all of them are there, so a preparation that was
interrupted goes on with what is missing, and a file that is gone or was cut short is made again.
"""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from core.config.schema import section
from core.data.index import ManifestIndex, write_records
from core.data.pcm_cache import PcmCache
from core.data.reading import BadSample
from core.data.shared_work import Piece, SharedWork
from core.rundir.checkpoints import COMPLETE, list_complete
from core.rundir.environment import runs_root
from core.rundir.files import CHECKPOINTS
from core.rundir.whole_files import appears_whole, read_json, write_json
from recipes.csa_stage1.conversion import Conversion
from recipes.csa_stage1.products import cache_samples, write_tsv
from recipes.csa_stage1.sources import CorpusPart, open_parts
from recipes.csa_stage1.workers import with_progress, worker_pool

logger = logging.getLogger(__name__)

STAMP, TSV, SKIPPED, SHARDS, FINISHED = "prepare.json", "manifest.tsv", "skipped.jsonl", ".prepare", "finished"

# A manifest's line -> the same with the times of its words, or None where they cannot be told.
AddWords = Callable[[dict[str, Any]], dict[str, Any] | None]


@section
class PrepareConfig:
    """Input and output. `input`: LibriSpeech trees, manifests (.jsonl), lists of the predecessor (.tsv). `trim_top_db`:
    how far below the loudest silence is, null: nothing is cut off. `aligner`: a run of lmu_gigaspeech, by its name
    under `runs/` or its directory, that finds when each word is said, where the corpus does not say. `overwrite`: make
    an output anew that was made otherwise, instead of refusing it.
    """

    input: list[str]
    output: str
    sample_rate_hz: Annotated[int, Field(ge=1)] = 16000
    trim_top_db: Annotated[float, Field(gt=0)] | None = 60.0
    aligner: str | None = None
    pcm_cache: bool = False
    workers: Annotated[int, Field(ge=1)] = 4
    shard_size: Annotated[int, Field(ge=1)] = 500
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.input:
            raise ValueError("input: the list is empty; name a corpus")


@dataclass(frozen=True)
class Preparation:
    """The corpus, and where it goes."""

    config: PrepareConfig
    parts: list[CorpusPart]

    @classmethod
    def open(cls, config: PrepareConfig) -> "Preparation":
        """Open the input; ValueError where it is none, and for two parts of one name."""
        parts = [part for path in config.input for part in open_parts(Path(path), shard_size=config.shard_size)]
        for name, number in Counter(part.name for part in parts).items():
            if number > 1:
                raise ValueError(f"prepare.input: {number} manifests would be called {name}.jsonl; prepare them apart")
        return cls(config, parts)

    @property
    def output(self) -> Path:
        return Path(self.config.output)

    @cached_property
    def input_hashes(self) -> list[str]:
        """The hashes of what is said in each part, as it was when this process first asked."""
        return [_hash(part.text_files()) for part in self.parts]

    def stamp(self) -> dict[str, Any]:
        """Return what decides how the output looks."""
        config = self.config
        return {
            "input": [part.describe() for part in self.parts],
            "sample_rate_hz": config.sample_rate_hz,
            "trim_top_db": config.trim_top_db,
            "aligner": config.aligner,
            "shard_size": config.shard_size,
            "input_hashes": self.input_hashes,
            **({} if config.aligner is None else aligner_facts(runs_root() / config.aligner)),
        }

    def _changes(self) -> list[str]:
        """Return what decides how the output looks, and was otherwise at its beginning; a new key is none."""
        path = self.output / STAMP
        known = read_json(path) if path.exists() else {}
        return [f"{key}: {known[key]} -> {now}" for key, now in self.stamp().items() if known.get(key, now) != now]

    def check(self) -> None:
        """Raise ValueError where the output was made otherwise, and is not to be overwritten."""
        if (changes := self._changes()) and not self.config.overwrite:
            raise ValueError(
                f"{self.output} was made otherwise ({'; '.join(changes)}); set prepare.output to another folder, or "
                "prepare.overwrite=true to make it anew"
            )

    def begin(self) -> None:
        """Claim the folder; by one rank. What was made otherwise is forgotten, so that it is made anew."""
        self.check()
        folder = self.output / SHARDS
        folder.mkdir(parents=True, exist_ok=True)
        if self._changes():
            (folder / FINISHED).unlink(missing_ok=True)
            for part in self.parts:
                for list_of_shard in folder.glob(f"{part.name}-*-of-*.jsonl"):
                    list_of_shard.unlink()
        write_json(self.output / STAMP, self.stamp())

    def is_finished(self) -> bool:
        """Return whether all is there, made as it should be, and every file as long as it was."""
        if not (self.output / SHARDS / FINISHED).exists() or self._changes():
            return False
        if self.config.pcm_cache and not all(self._has_cache(part) for part in self.parts):
            return False
        return all(self._is_whole(part, shard) for part in self.parts for shard in range(part.num_shards))

    def shards(self, work: SharedWork, *, add_words: AddWords | None) -> bool:
        """Convert all clips; return False when stopped."""
        config = self.config
        conversion = Conversion(self.output, config.sample_rate_hz, config.trim_top_db)
        with worker_pool(config.workers) as pool:
            pieces = [
                Piece(
                    self._list(part, shard).name,
                    partial(self._is_whole, part, shard),
                    partial(self._make, part, shard, conversion, pool, add_words),
                )
                for part in self.parts
                for shard in range(part.num_shards)
            ]
            return work.pieces("clips", pieces, is_over=lambda: False)

    def lists(self, work: SharedWork) -> bool:
        """Make the lists of all shards, by one rank while the others wait; return False when stopped."""
        return work.pieces("lists", [Piece("finish", self.is_finished, self._finish)], is_over=lambda: False)

    def _finish(self) -> None:
        """Write manifests, TSV, transcripts and caches."""
        skipped: Counter[str] = Counter()
        with appears_whole(self.output / SKIPPED) as file:
            for part in self.parts:
                num = write_records(self._records(part), self._manifest(part))
                for bad in self._bad(part):
                    skipped[bad["reason"].partition(":")[0]] += 1
                    file.write(json.dumps(bad, ensure_ascii=False).encode() + b"\n")
                hours = float(ManifestIndex.open(self._manifest(part)).durations_s.sum(dtype=float)) / 3600
                logger.info("%s: %d clips, %.2f hours", self._manifest(part), num, hours)
                for source, rel_path in part.transcripts:
                    (self.output / rel_path).parent.mkdir(parents=True, exist_ok=True)
                    if source.resolve() != (self.output / rel_path).resolve():
                        shutil.copyfile(source, self.output / rel_path)
        for reason, num in skipped.most_common():
            logger.warning("skipped %d clips: %s; listed in %s", num, reason, self.output / SKIPPED)
        rate_hz = self.config.sample_rate_hz
        write_tsv(self.output / TSV, self._sizes(), sample_rate_hz=rate_hz, scratch=self.output / SHARDS)
        if self.config.pcm_cache:
            for part in self.parts:
                cache_samples(self._manifest(part), sample_rate_hz=rate_hz, workers=self.config.workers)
        (self.output / SHARDS / FINISHED).touch()

    def _make(
        self,
        part: CorpusPart,
        shard: int,
        conversion: Conversion,
        pool: ProcessPoolExecutor,
        add_words: AddWords | None,
    ) -> None:
        (self.output / SHARDS / FINISHED).unlink(missing_ok=True)
        results = pool.map(conversion, part.utterances(shard), chunksize=8)
        with appears_whole(self._list(part, shard)) as file:
            for one in with_progress(results, f"{part.name} {shard + 1} of {part.num_shards}"):
                if isinstance(one, BadSample):
                    entry: dict[str, Any] = {"bad": one.to_record()}
                else:
                    record = one.record if add_words is None else add_words(one.record) or one.record
                    entry = one._replace(record=record)._asdict()
                file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")

    def _is_whole(self, part: CorpusPart, shard: int) -> bool:
        """Return whether a shard's list is there, and its files as long as it says."""
        try:
            entries = list(_entries(self._list(part, shard)))
            return all((self.output / one["rel_path"]).stat().st_size == one["num_bytes"] for one in _good(entries))
        except (OSError, ValueError, KeyError):
            return False

    def _list(self, part: CorpusPart, shard: int) -> Path:
        return self.output / SHARDS / f"{part.name}-{shard:06d}-of-{part.num_shards:06d}.jsonl"

    def _all(self, part: CorpusPart) -> Iterator[dict[str, Any]]:
        for shard in range(part.num_shards):
            yield from _entries(self._list(part, shard))

    def _records(self, part: CorpusPart) -> Iterator[dict[str, Any]]:
        return (one["record"] for one in _good(self._all(part)))

    def _bad(self, part: CorpusPart) -> Iterator[dict[str, Any]]:
        return (one["bad"] for one in self._all(part) if "bad" in one)

    def _manifest(self, part: CorpusPart) -> Path:
        return self.output / f"{part.name}.jsonl"

    def _sizes(self) -> Iterator[tuple[str, int]]:
        for part in self.parts:
            for one in _good(self._all(part)):
                yield one["rel_path"], one["record"]["recording"]["num_samples"]

    def _has_cache(self, part: CorpusPart) -> bool:
        try:
            PcmCache.open(ManifestIndex.open(self._manifest(part)))
        except ValueError:
            return False
        return True


def aligner_facts(run: Path) -> dict[str, Any]:
    """Return step, token and hash of the weights that `Recognizer.open` takes; nothing where they are gone."""
    complete = list_complete(run / CHECKPOINTS)
    return {"aligner_weights": read_json(complete[-1].directory / COMPLETE)} if complete else {}


def _hash(paths: Iterable[Path]) -> str:
    """Return the hash of the content of files, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        yield from map(json.loads, file)


def _good(entries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (one for one in entries if "bad" not in one)
