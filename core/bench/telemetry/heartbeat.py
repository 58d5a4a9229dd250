"""How a run is getting on, from its metrics.jsonl: a line every so often, and alerts when it stalls or slows down."""

import logging
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.bench.settings import WatchConfig
from core.report.loggers import hms
from core.rundir.files import METRICS
from core.rundir.metrics_log import read_new_records
from core.rundir.whole_files import append_line, now

logger = logging.getLogger(__name__)

ALERTS = "alerts.tsv"
LEAST_RECORDS = 3  # before anything is usual


class Heartbeat:
    """Follows the records of one attempt; `beat` is called often."""

    def __init__(self, name: str, run_dir: Path, config: WatchConfig) -> None:
        self._name, self._run_dir, self._config = name, run_dir, config
        self._offset = 0
        self._arrivals_s: list[float] = []
        self._iters_s: list[float] = []
        self._newest: dict[str, Any] = {}
        self._began_s = self._said_s = time.monotonic()
        self._is_stalled = False
        self.num_stalls = self.num_spikes = 0

    def beat(self) -> None:
        """Read what is new, alert where something is wrong, and say where the run is when that is due."""
        at_s = time.monotonic()
        records, self._offset = read_new_records(self._run_dir / METRICS, offset=self._offset)
        for record in records:
            self._arrivals_s.append(at_s)
            self._is_stalled = False
            self._newest |= record
            if isinstance(iter_s := record.get("step_s_p50"), float):
                self._look_for_spike(iter_s, step=record["step"])
                self._iters_s.append(iter_s)
        self._look_for_stall(at_s)
        if at_s - self._said_s >= self._config.heartbeat_every_s:
            self._said_s = at_s
            logger.info("%s: %s", self._name, self._words() or f"no record yet after {at_s - self._began_s:.0f} s")

    def silent_s(self) -> float:
        """Return the seconds since the last record, or the beginning."""
        return time.monotonic() - (self._arrivals_s[-1] if self._arrivals_s else self._began_s)

    @property
    def has_begun(self) -> bool:
        return bool(self._arrivals_s)

    def _words(self) -> str:
        forms = {"step": "step {}", "loss": "loss {:.4g}", "step_s_p50": "{:.3g} s/iter", "eta_s": "ETA {}"}
        known = {key: self._newest[key] for key in forms if self._newest.get(key) is not None}
        return ", ".join(forms[key].format(hms(value) if key == "eta_s" else value) for key, value in known.items())

    def _look_for_stall(self, at_s: float) -> None:
        if len(self._arrivals_s) <= LEAST_RECORDS or self._is_stalled:
            return
        usual_s = statistics.median(later - before for before, later in pairwise(self._arrivals_s))
        silent_s = at_s - self._arrivals_s[-1]
        if silent_s > max(self._config.stall_alert_ratio * usual_s, self._config.heartbeat_every_s):
            self._is_stalled = True
            self.num_stalls += 1
            self._alert("stall", f"no record for {silent_s:.0f} s, usual {usual_s:.3g} s")

    def _look_for_spike(self, iter_s: float, *, step: int) -> None:
        if len(self._iters_s) < LEAST_RECORDS:
            return
        usual_s = statistics.median(self._iters_s)
        if iter_s > self._config.spike_alert_ratio * usual_s:
            self.num_spikes += 1
            self._alert("spike", f"{iter_s:.3g} s an iteration at step {step}, usual {usual_s:.3g} s")

    def _alert(self, kind: str, words: str) -> None:
        logger.warning("%s: %s: %s", self._name, kind, words)
        try:
            append_line(self._run_dir / ALERTS, "\t".join((now(), kind, str(self._newest.get("step", 0)), words)))
        except OSError as error:
            logger.warning("the alert is not kept: %s", error)
