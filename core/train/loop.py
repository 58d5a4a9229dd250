"""The training loop: one function, one direction. What is hard to get right is here, once.

A step: its micro-batches are read; their target counts, and whether any rank wants to stop, are added up over ranks;
each micro-batch's loss SUM is scaled by dp_size / (targets of the whole step) and sent backward; then one update.
So the gradient does not depend on padding, on the number of ranks, or on how the step is cut into micro-batches.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from core.checkpoint.retention import check_metrics
from core.job.errors import DataError, DivergedError
from core.job.hardware import peak_flops
from core.job.run import Outcome
from core.losses.output import LossOutput, zero_gradients
from core.optim.optim import learning_rate
from core.parallel.engine import Engine
from core.rundir.files import BAD_SAMPLES, SAMPLES, SKIPPED_UPDATES
from core.rundir.whole_files import append_record
from core.seeding import seed_everything
from core.timing.phases import StepTimes
from core.train import out_of_memory
from core.train.config import TrainingRun
from core.train.evaluate import evaluation_mode
from core.train.metrics import MetricSums, step_metrics
from core.train.progress import Progress
from core.train.protocols import Data, Step
from core.train.reporter import Reporter
from core.train.skipped_updates import Verdict

logger = logging.getLogger(__name__)

DEBUG_STEPS = 4


# A loss, or the parts of one that is computed piece by piece (GradCache): each is called, then sent backward.
Loss = LossOutput | Sequence[Callable[[], LossOutput]]
LossFn = Callable[[Any, Any], Loss]
Validate = Callable[[int], Mapping[str, float] | None]
# Operations of a micro-batch, forward and backward: (its useful frames, all frames with padding); see core.flops.
Flops = Callable[[Any], tuple[float, float]]


@dataclass(frozen=True)
class Counts:
    """The sums over all ranks that are known before a step begins."""

    num_targets: float
    num_bad: float
    stop: bool


def fit(
    run: TrainingRun,
    engine: Engine,
    data: Data,
    loss_fn: LossFn,
    validate: Validate | None = None,
    *,
    flops: Flops | None = None,
) -> Outcome:
    """Train from the newest checkpoint to the last step, or until somebody wants to stop.

    `validate(step)` gives metrics, or None when it was interrupted by a stop. `flops`: for operations a second and MFU
    in the records. Raises DataError, DivergedError, StorageError; what is saved stays.
    """
    train, ranks, phases = run.config.train, run.ranks, run.phases
    last_step = min(train.max_steps, DEBUG_STEPS) if run.config.run.debug else train.max_steps
    progress = Progress.restored(run, engine)
    reporter = Reporter(run, step=progress.step, total_steps=last_step)
    end_of_link = progress.step + run.config.run.link_steps if run.config.run.link_steps else None
    steps = data.steps(progress.position) if progress.step < last_step else iter(())
    reason = ""
    with reporter, torch.autograd.set_detect_anomaly(run.config.run.debug):
        while not reason:
            if progress.is_validation_due(validate is not None):
                assert validate is not None
                reason = _validate(run, engine, progress, reporter, validate)
                continue
            if progress.step >= last_step:
                reason = "all steps done"
                break
            phases.begin_step(progress.step + 1)
            step = next(steps)
            phases.enter("vote")
            counts = _agree(run, step)
            if counts.num_bad:
                _note_bad(run, step, progress, num_examples=data.num_examples)
            if counts.stop:
                reason = next(filter(None, ranks.gather(run.stop.reason)))
                break
            progress.step += 1
            sums, verdict = train_step(
                run, engine, step, loss_fn, number=progress.step - 1, num_targets=counts.num_targets
            )
            phases.enter("log")
            progress.position = dict(step.position)
            progress.sums.add(sums)
            progress.skipped.note(progress.step, verdict, [list(batch.sample_ids) for batch in step.batches])
            _record_samples(run, step, number=progress.step)
            run.checkpoints.poll()
            times = phases.end_step()
            progress.sums.add(_speed(run, step, times, flops))
            reporter.observe_step(times.total_s)
            if progress.step % train.log_every_steps == 0 or progress.step == last_step:
                reporter.log_step(progress, epoch=step.epoch)
                if progress.skipped.in_row > train.max_skipped_in_row:
                    _go_back(run, engine, progress, reporter)
                    continue
            if progress.step == end_of_link and progress.step < last_step:
                reason = f"run.link_steps={run.config.run.link_steps} done"
            elif progress.is_save_due(run) and not progress.is_validation_due(validate is not None):
                reporter.measure_save(lambda: progress.save(run, engine))
        finished = progress.step >= last_step or progress.is_early
        progress.save(run, engine, wait=True)
        phases.enter("outside")
    logger.info("stopped at step %d: %s", progress.step, reason)
    return Outcome(step=progress.step, finished=finished, reason=reason)


def train_step(
    run: TrainingRun, engine: Engine, step: Step, loss_fn: LossFn, *, number: int, num_targets: float
) -> tuple[Mapping[str, tuple[Any, Any]], Verdict]:
    """Run forward, backward and update of step `number` (from 0); return the sums to log, and whether it was bad."""
    ranks = run.ranks
    sums, losses = MetricSums(), []
    scale = ranks.dp_size / num_targets if num_targets else 0.0
    engine.begin_step(number)
    for place, batch in enumerate(step.batches):
        seed_everything(run.seed, "micro_batch", number, ranks.dp_rank + place * ranks.dp_size)
        is_last = place == len(step.batches) - 1
        weight = scale if batch.num_targets else 0.0
        losses.append(torch.zeros((), dtype=torch.float64, device=ranks.device))
        run.phases.enter("move")
        with out_of_memory.recorded(run, batch, step=number + 1):
            for output in _backpropagate(run, engine, loss_fn, batch.to(ranks.device), weight=weight, is_last=is_last):
                if batch.num_targets:  # the mean of nothing may be NaN
                    losses[-1] += output.loss_sum.detach()
                sums.add(output.metrics if ranks.tp_rank == 0 and batch.sample_ids else {})
        if ranks.tp_rank == 0:
            sums.add({"loss": (losses[-1], float(batch.num_targets))})
    run.phases.enter("update")
    if not num_targets:
        engine.discard()
        sums.add({"skipped_updates": (float(ranks.is_first), 0.0)})
        return sums.pairs(), Verdict(torch.zeros((), device=ranks.device), losses)
    optim = run.config.optim
    norm = engine.step(max_norm=optim.max_norm, lr=learning_rate(optim, number)).detach()
    is_bad = (~torch.isfinite(norm)).double()
    if ranks.is_first:
        sums.add({"grad_norm": (torch.where(is_bad > 0, 0.0, norm), 1 - is_bad), "skipped_updates": (is_bad, 0.0)})
    return sums.pairs(), Verdict(is_bad, losses)


def _backpropagate(
    run: TrainingRun, engine: Engine, loss_fn: LossFn, batch: Any, *, weight: float, is_last: bool
) -> Iterator[LossOutput]:
    """Send a micro-batch's loss backward, whole or part by part; only the last backward of the step synchronizes.

    Without a weight it goes there all the same, as other ranks wait for its collectives, but with gradients of 0.
    """
    run.phases.enter("forward")
    with zero_gradients(engine.model) if not weight else nullcontext():
        with engine.accumulate(last=is_last):
            loss = loss_fn(engine.model, batch)
            if isinstance(loss, LossOutput):
                run.phases.enter("reduce" if is_last else "backward")
                engine.backward(loss.loss_sum * weight)
                yield loss
                return
        for number, part in enumerate(loss):
            is_last_part = is_last and number == len(loss) - 1
            with engine.accumulate(last=is_last_part):
                run.phases.enter("forward")
                output = part()
                run.phases.enter("reduce" if is_last_part else "backward")
                engine.backward(output.loss_sum * weight)
                yield output


def _agree(run: TrainingRun, step: Step) -> Counts:
    """Add up over all ranks: targets, bad samples, and whether anybody wants to stop."""
    mine = float(run.ranks.tp_rank == 0)
    targets = mine * sum(batch.num_targets for batch in step.batches)
    bad = mine * sum(len(batch.bad) for batch in step.batches)
    total = run.ranks.total([targets, bad, float(run.stop.reason is not None)])
    return Counts(num_targets=total[0], num_bad=total[1], stop=total[2] > 0)


def _note_bad(run: TrainingRun, step: Step, progress: Progress, *, num_examples: int) -> None:
    """List the bad samples of a step, each once, and stop when there are too many."""
    mine = [bad.to_record() for batch in step.batches for bad in batch.bad] if run.ranks.tp_rank == 0 else []
    for record in (record for records in run.ranks.gather(mine) for record in records):
        if record["sample_id"] in progress.bad_ids:
            continue
        progress.bad_ids.append(record["sample_id"])
        if run.ranks.is_first:
            logger.warning("skipped a bad sample: %s: %s (%s)", *(record[k] for k in ("sample_id", "reason", "path")))
            append_record(run.directory / BAD_SAMPLES, {**record, "step": progress.step + 1, "token": run.token})
    allowed = max(10, run.config.train.max_bad_share * num_examples)
    if len(progress.bad_ids) > allowed:
        raise DataError(
            f"{len(progress.bad_ids)} of {num_examples} examples are bad, {allowed:.0f} are allowed "
            f"(train.max_bad_share={run.config.train.max_bad_share}); see {run.directory / BAD_SAMPLES}"
        )


def _validate(run: TrainingRun, engine: Engine, progress: Progress, reporter: Reporter, validate: Validate) -> str:
    """Validate, and save if that is due or the result is among the best; return a reason to stop, or nothing."""
    run.phases.enter("validate")
    began = time.perf_counter()
    with evaluation_mode(engine.model):
        metrics = validate(progress.step)
    if metrics is None:
        return next(filter(None, run.ranks.gather(run.stop.reason)))
    reporter.log_validation(metrics, step=progress.step, seconds=time.perf_counter() - began)
    progress.validated_step = progress.step
    if progress.early is not None:
        progress.is_early = progress.early.observe(metrics)
    check_metrics(run.config.checkpoint.rankings, metrics)
    if progress.is_save_due(run) or run.config.checkpoint.rankings:
        reporter.measure_save(lambda: progress.save(run, engine, metrics=metrics))
    return "no improvement: train.early_stop" if progress.is_early else ""


def _go_back(run: TrainingRun, engine: Engine, progress: Progress, reporter: Reporter) -> None:
    """Go back to the last checkpoint after too many skipped updates. DivergedError where that has not helped."""
    problem = f"{progress.skipped.in_row} updates in a row had no finite gradient up to step {progress.step}"
    if not progress.go_back(run, engine):
        tried = "there is no checkpoint" if progress.went_back_to is None else "it was tried from the last checkpoint"
        advice = "lower optim.lr or optim.max_norm"
        raise DivergedError(f"{problem}; {tried}; see {run.directory / SKIPPED_UPDATES}; {advice}")
    reporter.start(progress.step)
    if run.ranks.is_first:
        logger.warning("%s; back to the checkpoint of step %d, with the data that follows", problem, progress.step)


def _record_samples(run: TrainingRun, step: Step, *, number: int) -> None:
    """Write the sample ids of the step's micro-batches in the plan's order, the same on any number of ranks."""
    if not run.config.run.record_samples:
        return
    shares = run.ranks.gather([list(batch.sample_ids) for batch in step.batches])[:: run.ranks.tp_size]
    if run.ranks.is_first:
        ids = [share[place] for place in range(len(shares[0])) for share in shares]
        append_record(run.directory / SAMPLES, {"step": number, "token": run.token, "micro_batches": ids})


def _speed(run: TrainingRun, step: Step, times: StepTimes, flops: Flops | None) -> Mapping[str, tuple[Any, Any]]:
    """Return how fast the step was, as sums to log."""
    if run.ranks.tp_rank:
        return {}
    counted = [flops(batch) for batch in step.batches if batch.sample_ids] if flops is not None else []
    return step_metrics(
        step_s=times.total_s,
        data_wait_s=times.wait_s,
        length=sum(batch.length for batch in step.batches),
        padded_length=sum(batch.padded_length for batch in step.batches),
        unit=step.batches[0].unit,
        num_targets=sum(batch.num_targets for batch in step.batches),
        dp_size=run.ranks.dp_size,
        tp_size=run.ranks.tp_size,
        model_flops=None if flops is None else sum(useful for useful, _ in counted),
        padded_flops=sum(padded for _, padded in counted),
        peak_flops=peak_flops(run.ranks.device),
    )
