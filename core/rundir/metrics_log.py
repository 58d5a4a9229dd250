"""metrics.jsonl: one object a logged step, and the line that a person reads meanwhile.

Keys of every record: `phase` ("start", "train" or "valid"), `step` (updates done), `time` (UTC), `token` (of the run's
lease, one more with each holder), `link`. The other names are flat, their values numbers or null; what was not finite
is null and listed in `non_finite`. A record of phase "start" says from which step a link went on, or to which it went
back: whatever an older token, or the same one before, wrote beyond that step does not count.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.rundir.checkpoints import is_overtaken, read_lineage
from core.rundir.files import CHECKPOINTS, METRICS
from core.rundir.ledger import LinkRecord
from core.rundir.whole_files import append_record, now, parse_records, read_records

TAIL_BYTES = 8192  # a dozen records
LINE_WIDTH = 120
TRAIN_FORMATS = {
    "epoch": "epoch {:.2f}",
    "loss": "loss {:.4g}",
    "grad_norm": "norm {:.3g}",
    "lr": "lr {:.2e}",
    "audio_s_per_s": "{:,.0f} audio s/s",
    "tokens_per_s": "{:,.0f} tokens/s",
    "step_s_p50": "{:.3g} s/step",
    "data_wait_share": "wait {:.0%}",
    "mfu": "MFU {:.1%}",
    "peak_memory_gib": "{:.1f} GiB",
    "skipped_updates": "{:.0f} skipped",
}
LEAST_IMPORTANT_FIRST = ("epoch", "peak_memory_gib", "step_s_p50", "mfu", "data_wait_share", "lr")


class MetricsLog:
    """The writer of metrics.jsonl; on rank 0 only."""

    def __init__(self, run_directory: Path, *, token: int, link: int) -> None:
        self._path = run_directory / METRICS
        self._facts = {"token": token, "link": link}

    def start(self, step: int) -> None:
        """Write where this link goes on: `step` updates are in the loaded checkpoint, 0 in a new run."""
        self.write({}, phase="start", step=step)

    def write(self, metrics: Mapping[str, float | None], *, phase: str, step: int) -> dict[str, Any]:
        """Append one record and return it."""
        record: dict[str, Any] = {"phase": phase, "step": step, "time": now(), **self._facts}
        record |= metrics
        if non_finite := [name for name, value in metrics.items() if value is not None and not math.isfinite(value)]:
            record |= dict.fromkeys(non_finite)
            record["non_finite"] = non_finite
        append_record(self._path, record)
        return record


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records that count, by step: none twice, and none beyond the step where a later link went on."""
    records = [record for record in read_records(path) if _is_whole(record)]
    starts = [(r["token"], line, r["step"]) for line, r in enumerate(records) if r["phase"] == "start"]
    kept: dict[tuple[int, str, int], dict[str, Any]] = {}
    for line, record in enumerate(records):
        token, step, phase = record["token"], record["step"], record["phase"]
        if any((token, line) < (later, start) and step > resumed for later, start, resumed in starts):
            continue
        place = (step, phase, token if phase == "start" else 0)
        if place not in kept or kept[place]["token"] <= token:
            kept[place] = record
    return sorted(kept.values(), key=lambda record: record["step"])


def latest_metrics(run: Path, links: Sequence[LinkRecord]) -> dict[str, Any]:
    """Return the newest value of every name among the records that count, from the end of the file only.

    Where a later job went on, its start in the ledger and the lineage of the checkpoints tell.
    """
    path = run / METRICS
    if not path.exists():
        return {}
    size, length = path.stat().st_size, TAIL_BYTES
    starts = {link.started["token"]: link.started.get("step", 0) for link in links if "token" in link.started}
    lineage = {**read_lineage(run / CHECKPOINTS), **starts}
    while True:
        with path.open("rb") as file:
            file.seek(max(0, size - length))
            tail = file.read()
        merged: dict[str, Any] = {}
        for record in parse_records(tail.splitlines()):  # the first line is usually cut
            token, step = record.get("token"), record.get("step")
            if token is None or step is None or not is_overtaken(lineage, token=token, step=step):
                merged.update(record)
        if merged or length >= size:
            return merged
        length *= 8  # what does not count fills the end


def read_new_records(path: Path, *, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Return the records of training and validation that came since `offset`, and the offset for the next call."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    records = [record for record in parse_records(whole.splitlines()) if record.get("phase") in ("train", "valid")]
    return records, offset + len(whole)


def step_line(record: Mapping[str, Any], *, total_steps: int) -> str:
    """Return a line of at most 120 columns for a person who watches; what is least important gives way."""
    parts = {"step": f"step {record['step']:>{len(f'{total_steps:,}')},}/{total_steps:,}"}
    if record["phase"] == "train":
        known = {name: record[name] for name in TRAIN_FORMATS if record.get(name) is not None}
        parts |= {name: TRAIN_FORMATS[name].format(value) for name, value in known.items()}
        if not record.get("skipped_updates"):
            parts.pop("skipped_updates", None)
        if record.get("eta_s") is not None:
            parts["eta_s"] = f"ETA {duration(record['eta_s'])}"
    else:
        metrics = {name: value for name, value in record.items() if name.startswith("valid_") and value is not None}
        shown = [f"{name.removeprefix('valid_')} {value:.4g}" for name, value in metrics.items()]
        parts["metrics"] = f"{record['phase']}: {'  '.join(shown)}"
    if record.get("non_finite"):
        parts["non_finite"] = f"not finite: {', '.join(record['non_finite'])}"
    for name in LEAST_IMPORTANT_FIRST:
        if len(" | ".join(parts.values())) > LINE_WIDTH:
            parts.pop(name, None)
    line = " | ".join(parts.values())
    return line if len(line) <= LINE_WIDTH else f"{line[: LINE_WIDTH - 3]}..."


def duration(seconds: float) -> str:
    """Return seconds as `1d 02:03:04`, or `2:03:04` below a day."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"


def _is_whole(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("step"), int) and isinstance(record.get("token"), int) and "phase" in record
