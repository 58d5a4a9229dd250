"""What `prepare` makes of all clips together: the predecessor's TSV, and the caches of samples."""

import os
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from core.data.index import ManifestIndex
from core.data.pcm_cache import write_cache
from core.data.reading import place_of, read_place
from core.rundir.whole_files import appears_whole
from recipes.csa_stage1.sources import TSV_HEADER
from recipes.csa_stage1.workers import with_progress, worker_pool

_BLOCK = 32  # clips that a worker reads at a time


def write_tsv(path: Path, sizes: Iterable[tuple[str, int]], *, sample_rate_hz: int, scratch: Path) -> None:
    """Write (path of a clip, samples) as the predecessor's list, sorted by `sort`, which needs no memory for it.

    ValueError for a path that two clips have.
    """
    unsorted = scratch / "unsorted.tsv"
    with unsorted.open("w", encoding="utf-8") as lines:
        for rel_path, num_samples in sizes:
            lines.write(f"{rel_path}\t{num_samples}\t{num_samples / sample_rate_hz:.6f}\n")
    subprocess.run(["sort", "-o", unsorted, unsorted], env={**os.environ, "LC_ALL": "C"}, check=True)
    before = ""
    with appears_whole(path) as file, unsorted.open(encoding="utf-8") as lines:
        file.write(TSV_HEADER.encode())
        for line in lines:
            rel_path = line.partition("\t")[0]
            if rel_path == before:
                raise ValueError(f"prepare.input: two clips would be {rel_path}; prepare them into different folders")
            file.write(line.encode())
            before = rel_path
    unsorted.unlink()


def cache_samples(manifest: Path, *, sample_rate_hz: int, workers: int) -> None:
    """Write the samples of a manifest's files beside it (core/data/pcm_cache.py)."""
    index = ManifestIndex.open(manifest)
    with worker_pool(workers) as pool:
        blocks = range(0, len(index), _BLOCK)
        read = pool.map(partial(_read_block, index), blocks)
        clips = (clip for block in with_progress(read, f"cache of {manifest.stem}", len(blocks)) for clip in block)
        write_cache(manifest, clips, sample_rate_hz=sample_rate_hz)


def _read_block(index: ManifestIndex, first: int) -> list[np.ndarray]:
    return [read_place(place_of(index.record(row))) for row in range(first, min(len(index), first + _BLOCK))]
