"""The predecessor's files: `tsv/{dataset}_{split}.tsv` and `label/label_{split}.pt`, text in spite of its name.

A tsv: the root folder, then `path<TAB>samples` for each utterance. Labels: one line an utterance, integers with a space
between. fairseq reads and writes the same (`train.tsv`, `train.km`).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.data.index import ManifestIndex
from core.rundir.whole_files import write_whole
from core.units.label_store import LabelCard, LabelStore, write_store


class Utterances(NamedTuple):
    """A tsv: paths below `root`, and the samples of each."""

    root: str
    paths: list[str]
    num_samples: list[int]


def read_tsv(path: Path) -> Utterances:
    """ValueError naming the line that is not `path<TAB>samples`."""
    root, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    found = Utterances(root.strip(), [], [])
    for number, line in enumerate(lines, start=2):
        name, tab, samples = line.rpartition("\t")
        if not tab or not samples.strip().isdigit():
            raise ValueError(f"{path}:{number}: expected path<TAB>samples, got {line[:80]!r}")
        found.paths.append(name)
        found.num_samples.append(int(samples))
    return found


def write_tsv(path: Path, utterances: Utterances) -> None:
    rows = zip(utterances.paths, utterances.num_samples, strict=True)
    write_whole(path, "\n".join([utterances.root, *(f"{name}\t{samples}" for name, samples in rows)]) + "\n")


def read_labels(path: Path) -> Iterator[np.ndarray]:
    """The labels of each line, int64; ValueError naming the line that has anything else."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield np.array(line.split(), dtype=np.int64)
            except ValueError:
                raise ValueError(f"{path}:{number}: expected integers, got {line[:80]!r}") from None


def write_labels(path: Path, labels: Iterable[np.ndarray]) -> None:
    write_whole(path, "".join(" ".join(map(str, one.tolist())) + "\n" for one in labels))


def import_labels(tsv: Path, labels: Path, index: ManifestIndex, directory: Path, card: LabelCard) -> LabelStore:
    """A label store for a manifest from the predecessor's files; utterances are found by the paths of their audio.

    ValueError where the files disagree in length, or where cuts of the manifest have no labels in them.
    """
    utterances = read_tsv(tsv)
    rows = list(read_labels(labels))
    if len(rows) != len(utterances.paths):
        raise ValueError(f"{labels} has {len(rows)} lines for the {len(utterances.paths)} utterances of {tsv}")
    root = Path(utterances.root)
    of_path = {(root / name).resolve(): row for name, row in zip(utterances.paths, rows, strict=True)}
    found: list[np.ndarray] = []
    missing: list[str] = []
    for number in range(len(index)):
        cut = index.read(number)
        path = Path(cut.recording.sources[0].source).resolve()
        if path in of_path:
            found.append(of_path[path])
        else:
            missing.append(str(path))
    if missing:
        raise ValueError(f"{tsv} has no labels for {len(missing)} of {len(index)} cuts, first {missing[0]}")
    return write_store(directory, card, found)


def export_labels(store: LabelStore, index: ManifestIndex, *, tsv: Path, labels: Path) -> None:
    """Both files of a store, with the folder of the manifest as root."""
    root = index.manifest.parent
    utterances = Utterances(str(root), [], [])
    for number in range(len(index)):
        cut = index.read(number)
        path = Path(cut.recording.sources[0].source).resolve()
        utterances.paths.append(str(path.relative_to(root) if path.is_relative_to(root) else path))
        utterances.num_samples.append(int(cut.num_samples))
    write_tsv(tsv, utterances)
    write_labels(labels, (store[row] for row in range(len(store))))
