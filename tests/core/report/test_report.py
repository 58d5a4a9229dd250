"""The report of a synthetic run: complete, self-contained, safe to open, and made of unfinished runs too."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest

from core.report.picture import curve, draw, thinned
from core.report.report import write_report
from core.rundir import files as runfiles
from core.rundir.ledger import record_link
from core.rundir.metrics_log import MetricsLog, read_metrics
from core.rundir.whole_files import append_record, write_json

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two links: the first wrote up to step 60 and had saved step 50."""
    run = tmp_path / "demo"
    run.mkdir()
    for link, first, last in ((0, 0, 60), (1, 50, 100)):
        record_link(run, event="submitted", link=link, job_id=f"{700 + link}", seed=4_000_000 + link)
        record_link(run, event="started", link=link, host=f"node{link}", token=link + 1, step=first)
        log = MetricsLog(run, token=link + 1, link=link)
        log.start(first)
        for step in range(first + 10, last + 1, 10):
            log.write(
                {"loss": 100 / step, "lr": 1e-3, "grad_norm": 2.0, "audio_s_per_s": 50.0}, phase="train", step=step
            )
        log.write({"valid_loss": 1.5, "valid_wer": 0.5, "valid_cer": 0.25}, phase="valid", step=last)
        prediction = {"step": last, "sample_id": "a<b>", "reference": "one two three", "hypothesis": "one too"}
        append_record(run / "predictions.jsonl", prediction)
    record_link(run, event="ended", link=0, exit_code=75, reason="deadline", step=50, train_s=3600.0)
    for token in (1, 2):  # link 1 met it at a step that link 2 did again
        append_record(run / runfiles.BAD_SAMPLES, {"sample_id": "x", "step": 55, "token": token})
    write_json(run / runfiles.SCORES, {"test_wer": 0.3512, "test_words": 512, "test_ngram_wer": None})
    (run / runfiles.CONFIG).write_text("steps: 100  # </pre><script>alert(1)</script>\n")
    return run


def test_the_page_says_everything_and_needs_nothing_else(run: Path) -> None:
    page = write_report(run).read_text()
    assert (run / "report.png").read_bytes().startswith(PNG)
    (inlined,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(inlined).startswith(PNG)
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|@import|<link|<script', page), (
        "no external resource, no script"
    )
    text = re.sub(r"<[^>]+>", " ", page)
    for expected in ("100 steps", "2 links", "1:00:00 of training", "1 bad sample skipped", "unfinished"):
        assert expected in text
    for expected in ("35.1 %", "512", "701", "4000001", "node1", "deadline", "running or killed"):
        assert expected in text, expected
    assert "one <del>two three</del> <ins>too</ins>" in page
    assert "a&lt;b&gt;" in page and "&lt;script&gt;" in page


def test_the_state_comes_from_the_markers(run: Path) -> None:
    (run / runfiles.STOP).touch()
    assert "stopped by a person" in write_report(run).read_text()
    (run / runfiles.DONE).touch()
    assert "done | 100 steps" in write_report(run).read_text()


def test_a_run_without_anything_still_has_a_report(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text()
    assert "0 steps" in page and "<h2>Links" not in page
    assert (tmp_path / "report.png").read_bytes().startswith(PNG)


def test_values_that_are_null_or_negative_do_not_stop_the_picture(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, token=1, link=0)
    log.start(0)
    for step in range(1, 200):
        log.write({"loss": float("nan") if step % 3 else -1.0 * step, "grad_norm": 0.0}, phase="train", step=step)
    log.write({"valid_wer": float("inf")}, phase="valid", step=200)
    assert draw(read_metrics(tmp_path / "metrics.jsonl")).startswith(PNG)


def test_curves_are_what_counts_of_the_records(run: Path) -> None:
    steps, losses = curve(read_metrics(run / "metrics.jsonl"), "loss", phase="train")
    assert steps.tolist() == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    np.testing.assert_allclose(losses, 100 / steps)


def test_thinning_keeps_the_mean() -> None:
    steps, values = np.arange(12_000.0), np.sin(np.arange(12_000) / 500)
    few_steps, few_values = thinned(steps, values)
    assert len(few_steps) == 500
    np.testing.assert_allclose(few_steps, steps.reshape(500, 24).mean(1))
    np.testing.assert_allclose(few_values, values.reshape(500, 24).mean(1), atol=1e-12)
