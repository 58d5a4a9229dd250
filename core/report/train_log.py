"""train.log: the records in lines that a grep can follow, in the formats that CSRef's tools read.

    Step 120: Loss 3.5957
    Timing(window=100): data_wait_ms:p50=0.41 p90=0.77 | preprocess_ms:p50=... | ... | iter_ms:p50=530.60 p90=541.20
    TimingETA step=120 remain_steps=1080 eta_sec=573.1 eta_hms=00:09:33 mode=rank0 basis_iter_ms=530.60 samples=100
    TimingRank step=120 rank=1 loss=3.6012 data_wait=0.38 preprocess=0.12 fwd=170.31 bwd=340.55 step=9.20 iter=530.59

A line says what was true when it was written: after a resume some steps come twice, unlike in `read_metrics`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.timing.phases import TimingConfig

# Our part of a step, and what it is called in a line.
NAMES: Mapping[str, str] = {
    "data_wait": "data_wait",
    "move": "preprocess",
    "forward": "fwd",
    "backward": "bwd",
    "update": "step",
    "step": "iter",
}
NAN = float("nan")


class RankStep(NamedTuple):
    """The last step of one rank: its own loss since the last record, and the seconds of the parts."""

    rank: int
    loss: float | None
    parts_s: Mapping[str, float]


class TrainLog:
    """The file train.log, to which rank 0 appends lines."""

    def __init__(self, path: Path, timing: TimingConfig, *, total_steps: int) -> None:
        self._path, self._timing, self._total_steps = path, timing, total_steps

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the lines of a record of metrics.jsonl: loss, parts of the step, time to the end."""
        if record["phase"] != "train":
            return
        loss = record.get("loss")
        lines = [f"Step {record['step']}: Loss {NAN if loss is None else loss:.4f}"]
        if record.get("step_s_p50") is not None:
            lines.append(self._timing_line(record))
        if record.get("eta_s") is not None:
            lines.append(self._eta_line(record))
        self._append(lines)

    def write_ranks(self, ranks: Sequence[RankStep], *, step: int) -> None:
        """Write one line a rank that has measured a step."""
        lines = []
        for rank, loss, parts_s in ranks:
            if parts_s:
                parts = " ".join(f"{name}={1000 * parts_s[part]:.2f}" for part, name in NAMES.items())
                lines.append(f"TimingRank step={step} rank={rank} loss={NAN if loss is None else loss:.4f} {parts}")
        self._append(lines)

    def _timing_line(self, record: Mapping[str, Any]) -> str:
        parts = [
            f"{name}_ms:p50={1000 * record[f'{part}_s_p50']:.2f} p90={1000 * record[f'{part}_s_p90']:.2f}"
            for part, name in NAMES.items()
        ]
        return f"Timing(window={self._timing.window}): {' | '.join(parts)}"

    def _eta_line(self, record: Mapping[str, Any]) -> str:
        step, eta_s = record["step"], record["eta_s"]
        return (
            f"TimingETA step={step} remain_steps={self._total_steps - step} eta_sec={eta_s:.1f} eta_hms={hms(eta_s)} "
            f"mode={self._timing.eta_mode} basis_iter_ms={1000 * record['eta_step_s']:.2f} "
            f"samples={record['eta_samples']}"
        )

    def _append(self, lines: Sequence[str]) -> None:
        if lines:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))


def hms(seconds: float) -> str:
    """Format seconds as `00:09:33`; hours may have more digits."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02}:{minute:02}:{second:02}"
