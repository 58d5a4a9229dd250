"""What the preparation of every corpus shares: its command line, and manifests written part by part.

A part is done when its manifest is there, because a manifest appears whole: a preparation that was killed and is
started again skips the parts that are done and makes the others anew. A part holds one cut an utterance, with the
transcript as the corpus has it (normalizing is the recipe's business).
"""

import argparse
import fcntl
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lhotse import CutSet, MonoCut, RecordingSet, SupervisionSet
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from core.data.index import ManifestIndex, write_manifest


@dataclass(frozen=True)
class Part:
    """The material of one manifest."""

    recordings: CutSet  # one cut a recording, with the supervisions of all its utterances; may be lazy
    is_speech: Callable[[str], bool] = lambda text: True
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> number of utterances left out


def in_order(recordings: RecordingSet, supervisions: SupervisionSet) -> CutSet:
    """Cuts by name: the order in which a file system lists files must not decide what a run trains on."""
    cuts = CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    return CutSet.from_cuts(sorted(cuts, key=lambda cut: cut.id))


Load = Callable[[], Mapping[str, Part]]


def prepare(output: Path, groups: Mapping[Sequence[str], Load]) -> None:
    """Write `output/NAME.jsonl` with its index for every part.

    A key of `groups` names the parts that its function makes in one go; the function is called only when at least
    one of them is missing.
    """
    output.mkdir(parents=True, exist_ok=True)
    with _only_one(output):
        for names, load in groups.items():
            missing = [name for name in names if not _manifest(output, name).exists()]
            for name in sorted(set(names) - set(missing)):
                print(f"{name}: already done, {_summary(_manifest(output, name))}")
            parts = load() if missing else {}
            for name in missing:
                for leftover in output.glob(f".{name}.jsonl.*"):  # of a preparation that was killed
                    leftover.unlink()
                part = parts[name]
                with progress_bar() as progress:
                    write_manifest(progress.track(_utterances(part), description=name), _manifest(output, name))
                dropped = "".join(f", {number} dropped ({reason})" for reason, number in sorted(part.dropped.items()))
                print(f"{name}: {_summary(_manifest(output, name))}{dropped}")


@dataclass(frozen=True)
class Arguments:
    """The command line that all corpora have."""

    corpus: Path
    output: Path
    parts: list[str]
    workers: int
    download: bool
    cleanup: bool
    rest: argparse.Namespace  # options that this corpus adds


def parse_arguments(
    parser: argparse.ArgumentParser, *, parts: Sequence[str], default: Sequence[str], argv: Sequence[str] | None
) -> Arguments:
    """Read the command line; `parser` may already hold options of the corpus, they come back in `rest`."""
    parser.add_argument("corpus_dir", type=Path, help="where the corpus is, or goes with --download")
    parser.add_argument("output_dir", type=Path, help="where the manifests go")
    which = f"of {', '.join(parts)} (default: {', '.join(default) or 'all that are there'})"
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(default), metavar="PART", help=which)
    parser.add_argument("--workers", type=int, default=4, help="how many files are read at once (default: 4)")
    parser.add_argument("--download", action="store_true", help="first fetch what is missing")
    parser.add_argument("--cleanup", action="store_true", help="delete each fetched archive once it is unpacked")
    options = parser.parse_args(argv)
    if options.cleanup and not options.download:
        parser.error("--cleanup deletes only what --download fetched: give both")
    if options.workers < 1:
        parser.error(f"--workers={options.workers} must be at least 1")
    if not options.download and not options.corpus_dir.is_dir():
        parser.error(f"{options.corpus_dir}: no such folder; --download fetches the corpus into it")
    return Arguments(
        corpus=options.corpus_dir, output=options.output_dir, parts=options.parts, workers=options.workers,
        download=options.download, cleanup=options.cleanup, rest=options,
    )  # fmt: skip


def progress_bar() -> Progress:
    """Counts utterances, also where nobody knows how many there will be."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def _utterances(part: Part) -> Iterator[MonoCut]:
    """One cut for each supervision, named by it; what is no speech is counted and left out."""
    for recording in part.recordings:
        for supervision in recording.supervisions:
            if not (supervision.text or "").strip():
                part.dropped["no text"] += 1
            elif not part.is_speech(supervision.text):
                part.dropped["no speech"] += 1
            else:
                yield MonoCut(
                    id=supervision.id, start=supervision.start, duration=supervision.duration,
                    channel=supervision.channel, recording=recording.recording,
                    supervisions=[supervision.with_offset(-supervision.start)],
                )  # fmt: skip


def _manifest(output: Path, name: str) -> Path:
    return output / f"{name}.jsonl"


def _summary(manifest: Path) -> str:
    index = ManifestIndex.open(manifest)
    return f"{len(index)} utterances, {index.durations_s.sum(dtype=float) / 3600:.2f} hours"


@contextmanager
def _only_one(output: Path) -> Iterator[None]:
    """Hold `output` for this process: two preparations of one folder would take each other's files for leftovers."""
    with (output / ".preparing").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(f"{output}: another preparation is writing here; wait for it, or stop it") from None
        yield
