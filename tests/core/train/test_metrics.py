"""Metric sums over ranks, the log that survives resumes, the console line, wall times and the ETA."""

import json
import math
from pathlib import Path

import pytest
import torch

from core.report.picture import throughput
from core.rundir.metrics_log import MetricsLog, duration, read_metrics, step_line
from core.timing.eta import Eta
from core.train.metrics import MetricSums, merged_names, ratios, step_metrics


def reduced(ranks: list[MetricSums]) -> dict[str, float | None]:
    """What the ranks agree on, as by one gather of names and one all-reduce."""
    names = merged_names(rank.names() for rank in ranks)
    return ratios(names, torch.stack([rank.as_tensor(names) for rank in ranks]).sum(0))


def test_means_are_ratios_of_totals_however_micro_batches_are_spread() -> None:
    losses, counts = [6.0, 1.0, 9.0, 4.0], [3, 1, 2, 8]
    expected = sum(losses) / sum(counts)
    for cut in range(5):
        ranks = [MetricSums(), MetricSums()]
        for i, (loss, count) in enumerate(zip(losses, counts, strict=True)):
            ranks[i >= cut].add({"loss": (torch.tensor(loss, requires_grad=True), count)})
        assert reduced(ranks) == {"loss": pytest.approx(expected)}


def test_ranks_may_know_different_names() -> None:
    first, second, idle = MetricSums(), MetricSums(), MetricSums()
    first.add({"zeta": (2.0, 1.0), "alpha": (torch.tensor(3.0), torch.tensor(4))})
    second.add({"beta": (5, 10), "zeta": (4.0, 1.0), "never": (0.0, 0.0)})
    assert merged_names([first.names(), second.names(), idle.names()]) == ["alpha", "beta", "never", "zeta"]
    assert reduced([first, second, idle]) == {"alpha": 0.75, "beta": 0.5, "never": None, "zeta": 3.0}
    assert reduced([idle]) == {}


def test_sums_start_again_after_clear_and_hold_no_graph() -> None:
    sums, weight = MetricSums(), torch.tensor(2.0, requires_grad=True)
    for _ in range(3):
        sums.add({"loss": (weight * 2, 1)})
    tensor = sums.as_tensor(["loss"])
    assert tensor.tolist() == [12.0, 3.0] and not tensor.requires_grad and tensor.dtype == torch.float64
    sums.clear()
    assert sums.names() == [] and sums.as_tensor(["loss"]).tolist() == [0.0, 0.0]


def test_sums_are_exact_over_many_small_terms() -> None:
    sums = MetricSums()
    for _ in range(10_000):
        sums.add({"loss": (torch.tensor(0.1), 1)})  # in float32 the sum would be off by 1e-4
    assert ratios(["loss"], sums.as_tensor(["loss"]))["loss"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_rates_of_two_ranks() -> None:
    """Two ranks, two steps of 2 s: 30 s and 10 s of audio a step are 20 s of audio a second."""
    ranks = [MetricSums(), MetricSums()]
    for _ in range(2):
        for sums, audio_s, wait_s in zip(ranks, (30.0, 10.0), (0.0, 0.5), strict=True):
            sums.add(
                step_metrics(
                    step_s=2.0,
                    data_wait_s=wait_s,
                    length=audio_s,
                    padded_length=32.0,
                    num_targets=100,
                    dp_size=2,
                    model_flops=audio_s * 1e12,
                    padded_flops=32e12,
                    peak_flops=100e12,
                )
            )
    assert reduced(ranks) == {
        "audio_s_per_s": 20.0,
        "targets_per_s": 100.0,
        "data_wait_share": 0.125,
        "padding_share": 24 / 64,
        "tflops_per_device": 10.0,  # (15 + 5) / 2
        "padded_tflops_per_device": 16.0,
        "mfu": pytest.approx(0.1),
        "padded_mfu": pytest.approx(0.16),
    }


def test_throughput_is_named_by_the_unit_of_the_data() -> None:
    found = step_metrics(
        step_s=2.0, data_wait_s=0.0, length=600.0, padded_length=800.0, num_targets=1, dp_size=1, unit="tokens"
    )
    assert found["tokens_per_s"] == (600, 2) and found["padding_share"] == (200, 800) and "audio_s_per_s" not in found
    assert (
        step_line({**FULL, "tokens_per_s": 1e4} | {"audio_s_per_s": None}, total_steps=9).count("10,000 tokens/s") == 1
    )
    assert throughput([FULL]) == ("audio_s_per_s", "audio s/s")
    assert throughput([{"phase": "start"}, {"tokens_per_s": 5.0}]) == ("tokens_per_s", "tokens/s")


def test_mfu_is_null_without_a_peak_and_absent_without_a_formula() -> None:
    facts = {"step_s": 1.0, "data_wait_s": 0.0, "length": 1.0, "padded_length": 1.0, "num_targets": 1, "dp_size": 1}
    sums = MetricSums()
    sums.add(step_metrics(**facts, model_flops=2e12, padded_flops=3e12))
    record = reduced([sums])
    assert (record["tflops_per_device"], record["padded_tflops_per_device"]) == (2.0, 3.0)
    assert record["mfu"] is None and record["padded_mfu"] is None
    assert not {"mfu", "tflops_per_device"} & step_metrics(**facts).keys()


def test_a_rank_without_a_single_utterance_lowers_the_mean() -> None:
    """One of two ranks had an empty micro-batch: 4 TFLOP in 1 s on two devices."""
    ranks = [MetricSums(), MetricSums()]
    for sums, flops in zip(ranks, (4e12, 0.0), strict=True):
        facts = {"data_wait_s": 0.0, "length": 1.0, "padded_length": 1.0, "num_targets": 1, "dp_size": 2}
        sums.add(step_metrics(step_s=1.0, **facts, model_flops=flops, padded_flops=flops, peak_flops=10e12))
    assert (reduced(ranks)["tflops_per_device"], reduced(ranks)["mfu"]) == (2.0, 0.2)


def started(path: Path, *, token: int, link: int, step: int) -> MetricsLog:
    log = MetricsLog(path, token=token, link=link)
    log.start(step)
    return log


def steps_of(path: Path, phase: str = "train") -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in read_metrics(path / "metrics.jsonl") if r["phase"] == phase]


def test_resume_drops_what_an_earlier_link_wrote_beyond_the_checkpoint(tmp_path: Path) -> None:
    first = started(tmp_path, token=1, link=0, step=0)
    for step in (10, 20, 30, 40):
        first.write({"loss": float(step)}, phase="train", step=step)
    second = started(tmp_path, token=2, link=1, step=20)
    assert steps_of(tmp_path) == [(10, 10.0), (20, 20.0)], "30 and 40 were never saved"
    second.write({"loss": 3.5}, phase="train", step=30)
    first.write({"loss": 50.0}, phase="train", step=50)  # a node that was cut off and still writes
    first.write({"loss": 20.5}, phase="train", step=20)  # the same step again by the same token: the last counts
    assert steps_of(tmp_path) == [(10, 10.0), (20, 20.5), (30, 3.5)]
    starts = [(r["step"], r["link"]) for r in read_metrics(tmp_path / "metrics.jsonl") if r["phase"] == "start"]
    assert starts == [(0, 0), (20, 1)]


def test_going_back_drops_what_the_same_link_wrote_beyond(tmp_path: Path) -> None:
    log = started(tmp_path, token=1, link=0, step=0)
    for step in (10, 20, 30, 40):
        log.write({"loss": float(step)}, phase="train", step=step)
    log.start(20)
    assert steps_of(tmp_path) == [(10, 10.0), (20, 20.0)]
    log.write({"loss": 3.5}, phase="train", step=30)
    assert steps_of(tmp_path) == [(10, 10.0), (20, 20.0), (30, 3.5)]


def test_phases_of_one_step_are_separate_records(tmp_path: Path) -> None:
    log = started(tmp_path, token=1, link=0, step=0)
    log.write({"loss": 1.0}, phase="train", step=10)
    log.write({"valid_loss": 2.0}, phase="valid", step=10)
    assert [r["phase"] for r in read_metrics(tmp_path / "metrics.jsonl")] == ["start", "train", "valid"]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_a_torn_or_foreign_line_is_passed_over(tmp_path: Path) -> None:
    log = started(tmp_path, token=1, link=0, step=0)
    log.write({"loss": 1.0}, phase="train", step=10)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"something": "else"}\n[1]\n{"phase": "train", "step": 20, "tok\n')
    assert steps_of(tmp_path) == [(10, 1.0)]


def test_what_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
    log = started(tmp_path, token=3, link=2, step=0)
    log.write({"loss": math.nan, "grad_norm": math.inf, "lr": 0.1, "mfu": None}, phase="train", step=1)
    line = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert "NaN" not in line and "Infinity" not in line
    record = json.loads(line)
    assert record["loss"] is None and record["grad_norm"] is None and record["mfu"] is None and record["lr"] == 0.1
    assert record["non_finite"] == ["loss", "grad_norm"]
    assert (record["token"], record["link"], record["step"]) == (3, 2, 1)


FULL = {
    "phase": "train",
    "step": 123_400,
    "loss": 1.23456,
    "grad_norm": 12.3456,
    "lr": 1.5e-3,
    "audio_s_per_s": 17_170.4,
    "step_s_p50": 0.6543,
    "data_wait_share": 0.013,
    "mfu": 0.423,
    "peak_memory_gib": 134.2,
    "skipped_updates": 3,
    "eta_s": 200_000.0,
}


def test_the_line_for_a_person_fits_the_screen() -> None:
    assert step_line(FULL, total_steps=400_000) == (
        "step 123,400/400,000 | loss 1.235 | norm 12.3 | lr 1.50e-03 | 17,170 audio s/s | wait 1% | 3 skipped | "
        "ETA 2d 07:33:20"
    )
    crowded = {"phase": "valid", "step": 9, **{f"valid_metric_{i}": i / 3 for i in range(20)}}
    assert len(step_line(crowded, total_steps=9)) == 120


def test_lines_leave_out_what_is_unknown() -> None:
    record = {"phase": "train", "step": 7, "loss": None, "lr": 0.1, "mfu": None, "non_finite": ["loss"]}
    assert step_line(record, total_steps=20) == "step  7/20 | lr 1.00e-01 | not finite: loss"
    record = {"phase": "valid", "step": 20, "valid_loss": 1.5, "valid_wer": 0.25, "token": 1}
    assert step_line(record, total_steps=20) == "step 20/20 | valid: loss 1.5  wer 0.25"


def test_duration() -> None:
    assert [duration(s) for s in (0.4, 61, 3600 * 5 + 59.6, 90_061)] == ["0:00:00", "0:01:01", "5:01:00", "1d 01:01:01"]


def test_eta_counts_validations_and_checkpoints_within_5_percent() -> None:
    """A synthetic run: steps of 0.6 to 1.4 s, the first 30 s; validation every 100 takes 40 s, a checkpoint 10 s."""
    total, validate_every, save_every = 950, 100, 250

    def step_s(step: int) -> float:
        return 30.0 if step == 1 else 1.0 + 0.4 * math.sin(step)

    def events_s(step: int) -> tuple[float, float]:
        is_last = step == total
        return 40.0 * (step % validate_every == 0 or is_last), 10.0 * (step % save_every == 0 or is_last)

    spent = [step_s(step) + sum(events_s(step)) for step in range(1, total + 1)]
    eta, errors = Eta(total_steps=total, validate_every=validate_every, save_every=save_every), []
    assert eta.remaining_s(0) is None
    for step in range(1, total + 1):
        eta.add_step(step_s(step))
        validation_s, checkpoint_s = events_s(step)
        if validation_s:
            eta.add_validation(validation_s)
        if checkpoint_s:
            eta.add_checkpoint(checkpoint_s)
        if 250 <= step < total and step % 10 == 0:
            remaining = eta.remaining_s(step)
            assert remaining is not None
            errors.append(abs(remaining / sum(spent[step:]) - 1))
    assert len(errors) == 70 and max(errors) < 0.05, max(errors)
    assert eta.remaining_s(total) == 0.0
    without = Eta(total_steps=total)
    for step in range(1, 301):
        without.add_step(step_s(step))
    assert without.remaining_s(300) < 0.75 * sum(spent[300:]), "steps alone promise far too little"
