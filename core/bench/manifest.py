"""run_manifest.tsv: one row an attempt, appended when it has ended. The last row of a run is what counts.

A row that cannot be appended (disk full, a lock that hangs) goes to `run_manifest.fallback.tsv` beside the attempt; the
next one who writes or reads the manifest takes it in. A manifest with another header is kept as `.bak.N`, its rows are
carried over by the names of their columns.
"""

import csv
import logging
import os
import time
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from core.rundir.whole_files import append_line, locked, now, write_whole

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
            with locked(suite / LOCK):
                _make_ready(suite)
                append_line(suite / MANIFEST, _lines(COLUMNS, [row], "\t"))
            return
        except OSError as error:
            logger.warning("the manifest cannot be written (%s), try %d of %d", error, attempt + 1, retries + 1)
            if attempt < retries:
                time.sleep(RETRY_S)
    write_table(beside / FALLBACK, COLUMNS, [row])
    logger.warning("the row is kept in %s", beside / FALLBACK)


def read_rows(suite: Path) -> list[Row]:
    """Return all attempts in the order of their end, fallbacks taken in as far as the manifest can be written."""
    try:
        with locked(suite / LOCK):
            _make_ready(suite)
    except OSError as error:
        logger.warning("the manifest of %s cannot be put in order: %s", suite, error)
    return [*_read(suite / MANIFEST), *_waiting(suite)]


def latest_rows(suite: Path) -> list[Row]:
    """Return the row that counts of each run, in the order in which the runs first ended."""
    latest: dict[tuple[str, ...], Row] = {}
    for row in read_rows(suite):
        run = _identity(row)[:3]
        if run not in latest or int(row["attempt"] or 0) >= int(latest[run]["attempt"] or 0):
            latest[run] = row
    return list(latest.values())


def note_skipped(suite: Path, row: Mapping[str, object], *, reason: str) -> None:
    """Note a run that was not done, and why."""
    with locked(suite / LOCK):
        _make_ready_table(suite / SKIPPED, SKIPPED_COLUMNS)
        append_line(suite / SKIPPED, _lines(SKIPPED_COLUMNS, [{**row, "reason": reason, "time": now()}], "\t"))


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a whole table, which appears at once; a .tsv by tabs, any other by commas."""
    header = dict(zip(columns, columns, strict=True))
    write_whole(path, _lines(columns, [header, *rows], "\t" if path.suffix == ".tsv" else ",") + "\n")


def read_table(path: Path) -> list[Row]:
    """Return the rows of a table by column; without one that a kill has torn. Empty where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if path.suffix == ".tsv" else csv.reader(file)
        columns = next(reader, [])
        return [dict(zip(columns, cells, strict=True)) for cells in reader if len(cells) == len(columns)]


def _make_ready(suite: Path) -> None:
    """Give the manifest our header, and take every fallback into it; begin the list of what was left out."""
    _make_ready_table(suite / SKIPPED, SKIPPED_COLUMNS)
    path = suite / MANIFEST
    _make_ready_table(path, COLUMNS)
    with path.open(encoding="utf-8") as file:
        header = file.readline().rstrip("\n").split("\t")
    if header != list(COLUMNS):
        rows = _read(path)
        backup = next(name for n in range(1, 10_000) if not (name := path.with_name(f"{MANIFEST}.bak.{n}")).exists())
        os.replace(path, backup)
        logger.warning("%s has another header: kept as %s", path, backup.name)
        write_table(path, COLUMNS, rows)
    if waiting := _waiting(suite):
        append_line(path, _lines(COLUMNS, waiting, "\t"))
    for fallback in suite.glob(f"runs/*/*/{FALLBACK}"):
        fallback.unlink()


def _make_ready_table(path: Path, columns: Sequence[str]) -> None:
    if not path.exists():
        write_table(path, columns, [])


def _waiting(suite: Path) -> list[Row]:
    """Return the rows of fallbacks that the manifest lacks."""
    known = {_identity(row) for row in _read(suite / MANIFEST)}
    rows = [row for path in sorted(suite.glob(f"runs/*/*/{FALLBACK}")) for row in _read(path)]
    return [row for row in rows if _identity(row) not in known]


def _identity(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[column] for column in ("mode", "group", "repeat", "attempt"))


def _read(path: Path) -> list[Row]:
    return [{**dict.fromkeys(COLUMNS, ""), **row} for row in read_table(path)]


def _lines(columns: Sequence[str], rows: Sequence[Mapping[str, object]], separator: str) -> str:
    """Return a line a row, without the last line's end. No tab is left in a cell, nor a line's end."""
    text, is_plain = StringIO(), separator == "\t"
    writer = csv.writer(
        text, delimiter=separator, lineterminator="\n", quotechar=None if is_plain else '"',
        quoting=csv.QUOTE_NONE if is_plain else csv.QUOTE_MINIMAL,
    )  # fmt: skip
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return text.getvalue().removesuffix("\n")


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())
