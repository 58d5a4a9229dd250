"""What a plan does to its data, in numbers and in lines for the log, with their arithmetic."""

from collections.abc import Sequence

import numpy as np

from core.samplers.admission import Admitted
from core.samplers.rules import Chunk, Rules

_FEW_STEPS = 8  # of a chunk; the rounding to whole steps then costs 1/16 of the fill on average


class PlanStatistics:
    """Counts of each source, exact, and the shape of steps, as found in the first chunk.

    `advice`: how micro-batches could be fuller, for a chunk of few steps.
    """

    def __init__(self, rules: Rules, admitted: Sequence[Admitted], chunk: Chunk, *, advice: str) -> None:
        self._rules, self._budget = rules, rules.budget
        self._admitted = list(admitted)
        self._advice = advice
        length = chunk.length()
        self.num_chunk_draws = len(chunk.order)
        self.num_chunk_steps = chunk.num_steps
        self.length_per_step = length / chunk.num_steps
        self.padding_share = 1 - length / float(chunk.padded_length().sum())
        self.draws_per_step = self.num_chunk_draws / chunk.num_steps
        self.mean_length, self.spread, self.spread_within_step = _spreads(chunk)
        self.empty_share = 1 - int((chunk.sizes > 0).sum()) / len(chunk.sizes)

    @property
    def num_too_short(self) -> dict[str, int]:
        """The examples of each source that are skipped in every epoch because they are too short."""
        return {one.source.name: one.num_too_short for one in self._admitted}

    @property
    def num_over_budget(self) -> dict[str, int]:
        """The examples of each source that are cropped, put alone or skipped in every epoch, as `over_budget` says."""
        return {one.source.name: one.num_over_budget for one in self._admitted}

    @property
    def steps_per_epoch(self) -> dict[str, float]:
        """About how many steps one pass over each source takes."""
        total = sum(one.source.weight for one in self._admitted)
        return {one.source.name: one.num * total / one.source.weight / self.draws_per_step for one in self._admitted}

    def describe(self) -> list[str]:
        """Return lines such as `step = 8 micro-batches x ~100 s = ~800 s of audio in ~64 cuts; padding 1.4 %`."""
        return [*self._sources(), self._step(), self._lengths(), self._chunk()]

    def _sources(self) -> list[str]:
        lines = []
        budget, unit = self._budget, self._budget.unit
        total = sum(one.source.weight for one in self._admitted)
        for one in self._admitted:
            amount = f"{one.total_length / 3600:,.1f} h" if unit == "s" else f"{one.total_length:,.0f} {unit}"
            line = f"source {one.source.name}: {one.num:,} {budget.keys.example}s = {amount}"
            if len(self._admitted) > 1:
                line += f", {one.source.weight} of {total} draws"
            steps = self.steps_per_epoch[one.source.name]
            line += f", ~{steps:,.{1 if steps < 100 else 0}f} steps an epoch"
            if one.num_too_short:
                line += f"; {one.num_too_short:,} shorter than {budget.min_length:g} {unit} skipped"
            if one.num_over_budget:
                verb = {"crop": "cropped", "alone": "put alone", "skip": "skipped"}[budget.over_budget]
                line += f"; {one.num_over_budget:,} longer than {budget.allowed:g} {unit} {verb}"
            lines.append(line)
        return lines

    def _step(self) -> str:
        num, length, unit = self._rules.micro_batches_per_step, self.length_per_step, self._budget.unit
        of_audio = " of audio" if unit == "s" else ""
        line = f"step = {num:,} micro-batches x ~{length / num:,.0f} {unit} = ~{length:,.0f} {unit}{of_audio} "
        line += f"in ~{self.draws_per_step:,.0f} {self._budget.keys.example}s; padding {100 * self.padding_share:.1f} %"
        if self.empty_share:
            line += f", {100 * self.empty_share:.0f} % of the micro-batches are empty"
        return line

    def _lengths(self) -> str:
        mean, all_, within = (f"{value:.3g}" for value in (self.mean_length, self.spread, self.spread_within_step))
        return f"lengths = {mean} +- {all_} {self._budget.unit}, within a step +- {within} {self._budget.unit}"

    def _chunk(self) -> str:
        steps = "step" if self.num_chunk_steps == 1 else "steps"
        examples = f"{self.num_chunk_draws:,} {self._budget.keys.example}s"
        line = f"chunk = {examples} planned together = {self.num_chunk_steps:,} whole {steps}"
        return f"{line}; {self._advice}" if self._advice and self.num_chunk_steps < _FEW_STEPS else line


def _spreads(chunk: Chunk) -> tuple[float, float, float]:
    """Return the mean of the lengths, their standard deviation, and the one around the means of their steps."""
    lengths = chunk.draws.length[chunk.order].astype(np.float64)
    step = np.arange(len(chunk.sizes)) // (len(chunk.sizes) // chunk.num_steps)
    by_start = np.argsort(chunk.starts, kind="stable")
    step = np.repeat(step[by_start], chunk.sizes[by_start])  # (N,): of each example
    means = np.bincount(step, lengths) / np.maximum(np.bincount(step), 1)
    return float(lengths.mean()), float(lengths.std()), float(np.sqrt(np.square(lengths - means[step]).mean()))
