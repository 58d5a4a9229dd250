"""run_manifest.tsv: one row an attempt, appended when it has ended. The last row of a run is what counts.

A row that cannot be appended (disk full, a lock that hangs) goes to `run_manifest.fallback.tsv` beside the attempt; the
next one who writes or reads the manifest takes it in. A manifest with another header is kept as `.bak.N`, its rows are
carried over by the names of their columns.
"""

import csv
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from core.rundir.whole_files import now, write_whole

logger = logging.getLogger(__name__)

MANIFEST = "run_manifest.tsv"
FALLBACK = "run_manifest.fallback.tsv"
SKIPPED = "skipped_runs.tsv"
LOCK = ".bench.lock"
RETRY_S = 0.5

CSREF_COLUMNS = (
    "mode group repeat status exit_code duration_sec last_step last_iter_ms_p50 last_eta_step last_eta_remaining_steps "
    "last_eta_sec last_eta_hms last_eta_mode iter_p90_over_p50 data_p90_over_p50 step_p90_over_p50 unstable_run_flag "
    "port run_dir launcher_log train_log zero_stage micro_batch world_size global_batch deterministic cudnn_benchmark "
    "wall_clock_breakdown log_every_steps validation_every_steps checkpoint_every_steps num_workers prefetch_factor "
    "dataset_manifest_path dataset_use_trim dataset_offline_trimmed enable_cuda_sync_timing timing_rank_scope "
    "precision_mode_req precision_mode_effective model_load_dtype_effective attn_impl_effective "
    "speech_attn_impl_effective text_attn_impl_effective torch_compile_enabled tf32_enabled gpu_name gpu_cc "
    "gpu_uuid_list gpu_power_limit_w pcie_gen driver_version git_commit_hash git_commit_short git_branch git_dirty "
    "gpu_telemetry_rows gpu_telemetry_empty_flag host_telemetry_rows host_telemetry_empty_flag"
).split()
COLUMNS = (*CSREF_COLUMNS, "attempt", "reason", "stall_alerts", "spike_alerts", "hostname")
SKIPPED_COLUMNS = ("mode", "group", "repeat", "reason", "time")

Row = dict[str, str]


def append_row(suite: Path, row: Mapping[str, object], *, beside: Path, retries: int) -> None:
    """Add one attempt's row to the manifest of a suite, or to the fallback in `beside`. OSError if neither works."""
    for attempt in range(retries + 1):
        try:
            with locked(suite):
                _make_ready(suite)
                _append(suite / MANIFEST, COLUMNS, [row])
            return
        except OSError as error:
            logger.warning("the manifest cannot be written (%s), try %d of %d", error, attempt + 1, retries + 1)
            if attempt < retries:
                time.sleep(RETRY_S)
    _append(beside / FALLBACK, COLUMNS, [row])
    logger.warning("the row is kept in %s", beside / FALLBACK)


def read_rows(suite: Path) -> list[Row]:
    """All attempts in the order of their end, fallbacks taken in as far as the manifest can be written."""
    try:
        with locked(suite):
            _make_ready(suite)
    except OSError as error:
        logger.warning("the manifest of %s cannot be put in order: %s", suite, error)
    known = _read(suite / MANIFEST)
    waiting = [row for path in _fallbacks(suite) for row in _read(path)]
    return [*known, *(row for row in waiting if _identity(row) not in {_identity(one) for one in known})]


def latest_rows(suite: Path) -> list[Row]:
    """The row that counts of each run, in the order in which the runs first ended."""
    latest: dict[tuple[str, ...], Row] = {}
    for row in read_rows(suite):
        run = _identity(row)[:3]
        if run not in latest or int(row["attempt"] or 0) >= int(latest[run]["attempt"] or 0):
            latest[run] = row
    return list(latest.values())


def note_skipped(suite: Path, *, mode: str, group: str, repeat: int, reason: str) -> None:
    """A run that was not done, and why."""
    row = {"mode": mode, "group": group, "repeat": repeat, "reason": reason, "time": now()}
    with locked(suite):
        _append(suite / SKIPPED, SKIPPED_COLUMNS, [row])


@contextmanager
def locked(suite: Path) -> Iterator[None]:
    """One writer at a time, on any node that shares the directory."""
    descriptor = os.open(suite / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_table(
    path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]], *, separator: str = ","
) -> None:
    """A whole table, appearing at once."""
    write_whole(path, _text(columns, [dict(zip(columns, columns, strict=True)), *rows], separator))


def read_table(path: Path, *, separator: str = ",") -> list[Row]:
    """The rows of a table by column; without one that a kill has torn. Empty where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        is_plain = separator == "\t"
        reader = csv.reader(file, delimiter=separator, quoting=csv.QUOTE_NONE if is_plain else csv.QUOTE_MINIMAL)
        columns = next(reader, [])
        return [dict(zip(columns, cells, strict=True)) for cells in reader if len(cells) == len(columns)]


def _make_ready(suite: Path) -> None:
    """A manifest with our header, into which every fallback has been taken; and the list of what was left out."""
    if not (suite / SKIPPED).exists():
        write_table(suite / SKIPPED, SKIPPED_COLUMNS, [], separator="\t")
    path = suite / MANIFEST
    if not path.exists():
        write_table(path, COLUMNS, [], separator="\t")
    with path.open(encoding="utf-8") as file:
        header = file.readline().rstrip("\n").split("\t")
    if header != list(COLUMNS):
        rows = _read(path)
        backup = next(name for n in range(1, 10_000) if not (name := path.with_name(f"{MANIFEST}.bak.{n}")).exists())
        os.replace(path, backup)
        logger.warning("%s has another header: kept as %s", path, backup.name)
        write_table(path, COLUMNS, rows, separator="\t")
    known = {_identity(row) for row in _read(path)}
    for fallback in _fallbacks(suite):
        _append(path, COLUMNS, [row for row in _read(fallback) if _identity(row) not in known])
        fallback.unlink()


def _fallbacks(suite: Path) -> list[Path]:
    return sorted(suite.glob(f"runs/*/*/{FALLBACK}"))


def _identity(row: Mapping[str, str]) -> tuple[str, str, str, str]:
    return row.get("mode", ""), row.get("group", ""), row.get("repeat", ""), row.get("attempt", "")


def _read(path: Path) -> list[Row]:
    return [{**dict.fromkeys(COLUMNS, ""), **row} for row in read_table(path, separator="\t")]


def _append(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Add lines in one write each; a last line that was torn is ended first."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        text = "" if size else _text(columns, [dict(zip(columns, columns, strict=True))], "\t")
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            text = "\n"
        os.write(descriptor, (text + _text(columns, rows, "\t")).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _text(columns: Sequence[str], rows: Sequence[Mapping[str, object]], separator: str) -> str:
    lines = [separator.join(_cell(row.get(column, ""), separator) for column in columns) for row in rows]
    return "".join(f"{line}\n" for line in lines)


def _cell(value: object, separator: str) -> str:
    """One line; quoted where a comma needs it. No tab is left in it, so that a torn row of a TSV ends at its line."""
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    needs_quotes = separator == "," and ("," in text or '"' in text)
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if needs_quotes else text
