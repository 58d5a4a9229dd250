"""Make a lhotse Shar directory of a manifest, for training with data.order=randomized.

    python -m manifests.shar data/manifests/gigaspeech_XL.jsonl data/shar/gigaspeech_XL --shard-size 1000

Audio is written as FLAC of 16 bits, each cut for itself. The directory appears when it is complete. Utterances that
cannot be read are counted and left out; `python -m manifests.validate` lists them. Shards hold neighbours of the
manifest, and a run mixes no more than 1,000 cuts of a shard: `--shuffle SEED` writes a sorted manifest in random order.
"""

import argparse
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from lhotse import MonoCut
from lhotse.shar import SharWriter

from core.data.index import ManifestIndex
from core.data.reading import BadSample, read_cut
from core.rundir.whole_files import fsync_directory
from manifests.corpus import progress_bar

FIELDS = {"recording": "flac"}


def write_shar(manifest: Path, output: Path, *, shard_size: int, shuffle: int | None = None) -> tuple[int, int]:
    """(utterances written, utterances left out). ValueError where `output` is there, and where nothing can be read."""
    if output.exists():
        raise ValueError(f"{output} is there already; delete it, or name another directory")
    index = ManifestIndex.open(manifest)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
    temporary.mkdir()
    num_written = num_bad = 0
    try:
        with progress_bar() as progress, SharWriter(temporary, FIELDS, shard_size=shard_size) as writer:
            for cut in progress.track(_cuts(index, shuffle), total=len(index), description=output.name):
                try:
                    read_cut(cut, sample_rate_hz=cut.sampling_rate)
                except BadSample as bad:
                    progress.console.print(f"left out: {bad}")
                    num_bad += 1
                    continue
                writer.write(cut)
                num_written += 1
        if not num_written:
            raise ValueError(f"{manifest}: none of its {len(index)} utterances can be read")
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_directory(output.parent)
    return num_written, num_bad


def _cuts(index: ManifestIndex, shuffle: int | None) -> Iterator[MonoCut]:
    rows = np.arange(len(index)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(index))
    return (index.read(int(row)) for row in rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m manifests.shar", description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")
    parser.add_argument("output", type=Path, metavar="OUTPUT_DIR")
    parser.add_argument("--shard-size", type=_at_least_one, default=1000, help="utterances of a shard (default: 1000)")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="in random order, not in the manifest's")
    options = parser.parse_args(argv)
    try:
        num_written, num_bad = write_shar(
            options.manifest, options.output, shard_size=options.shard_size, shuffle=options.shuffle
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None
    left_out = f", {num_bad} that cannot be read left out" if num_bad else ""
    print(f"{options.output}: {num_written} utterances in {-(-num_written // options.shard_size)} shards{left_out}")


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    main()
