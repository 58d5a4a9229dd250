"""Read every utterance of some manifests as training will, and list those that training would skip.

    python -m manifests.validate data/manifests/*.jsonl --workers 8
    python -m manifests.validate train.jsonl --sample-rate 16000 --output bad_files.jsonl

Exit code 0 when all are good, 89 when any is bad. A line of the list names one: manifest, row, sample_id, reason, path.
A file is bad when it is missing, empty, damaged, truncated or longer than the manifest says, when its rate or channels
are not the manifest's, when it holds NaN, infinities or only silence, and when its text is empty.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import soundfile
from lhotse import MonoCut

from core.data.index import ManifestIndex
from core.data.reading import BadSample, read_cut
from core.rundir.exit_codes import ExitCode
from core.rundir.whole_files import append_record
from manifests.corpus import progress_bar

_CHUNK_ROWS = 256
_SURPLUS_TOLERANCE_S = 0.025  # a manifest may round the seconds of a recording


def validate(manifest: Path, *, sample_rate_hz: int | None, workers: int) -> Iterator[dict[str, Any]]:
    """A record of every bad utterance of a manifest, in its order."""
    num_rows = len(ManifestIndex.open(manifest))
    chunks = [range(start, min(start + _CHUNK_ROWS, num_rows)) for start in range(0, num_rows, _CHUNK_ROWS)]
    with ProcessPoolExecutor(workers) as pool, progress_bar() as progress:
        task = progress.add_task(manifest.name, total=num_rows)
        results = pool.map(_check_rows, repeat(manifest), chunks, repeat(sample_rate_hz))
        for rows, records in zip(chunks, results, strict=True):
            progress.advance(task, len(rows))
            yield from records


def check(cut: MonoCut, *, sample_rate_hz: int | None) -> None:
    """Raise BadSample where training would, or where the audio is not of `sample_rate_hz`, or longer than promised."""
    if sample_rate_hz is not None and cut.sampling_rate != sample_rate_hz:
        raise BadSample(cut.id, f"sampled at {cut.sampling_rate} Hz, expected {sample_rate_hz} Hz", _path(cut))
    reading = read_cut(cut, sample_rate_hz=cut.sampling_rate)
    reading.text()
    file_s = soundfile.info(reading.path).duration
    if file_s > cut.recording.duration + _SURPLUS_TOLERANCE_S:
        raise reading.bad(f"the file has {file_s:.3f} s, the manifest says {cut.recording.duration:.3f} s")


def _check_rows(manifest: Path, rows: range, sample_rate_hz: int | None) -> list[dict[str, Any]]:
    index = ManifestIndex.open(manifest)
    records = []
    for row in rows:
        try:
            check(index.read(row), sample_rate_hz=sample_rate_hz)
        except BadSample as bad:
            records.append({"manifest": str(manifest), "row": row, **bad.to_record()})
    return records


def _path(cut: MonoCut) -> str:
    return str(cut.recording.sources[0].source)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m manifests.validate", description=__doc__.partition("\n")[0])
    parser.add_argument("manifests", nargs="+", type=Path, metavar="MANIFEST")
    parser.add_argument("--sample-rate", type=int, metavar="HZ", help="list audio of any other rate too")
    parser.add_argument("--workers", type=int, default=4, help="how many processes read (default: 4)")
    parser.add_argument("--output", type=Path, default=Path("bad_files.jsonl"), help="the list of bad ones")
    options = parser.parse_args(argv)
    options.output.unlink(missing_ok=True)
    num_bad = 0
    for manifest in options.manifests:
        for record in validate(manifest, sample_rate_hz=options.sample_rate, workers=options.workers):
            append_record(options.output, record)
            num_bad += 1
    if num_bad:
        print(f"{num_bad} bad utterances, listed in {options.output}")
        sys.exit(ExitCode.DATA)
    print("all utterances are good")


if __name__ == "__main__":
    main()
