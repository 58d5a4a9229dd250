"""What a plan does to its data, in numbers and in lines for the log, with their arithmetic."""

from collections.abc import Sequence

from core.samplers.admission import Admitted
from core.samplers.chunk import Chunk
from core.samplers.rules import PlanConfig

_FEW_STEPS = 8  # of a chunk; the rounding to whole steps then costs 1/16 of the fill on average


class PlanStatistics:
    """Counts of each source, exact, and the shape of steps, as found in the first chunk."""

    def __init__(self, config: PlanConfig, admitted: Sequence[Admitted], chunk: Chunk) -> None:
        self._config = config
        self._admitted = list(admitted)
        padded_s = float(chunk.padded_s().sum())
        num_filled = int((chunk.sizes > 0).sum())
        self.num_chunk_draws = len(chunk.order)
        self.num_chunk_steps = chunk.num_steps
        self.audio_s_per_step = chunk.audio_s() / chunk.num_steps
        self.padding_share = 1 - chunk.audio_s() / padded_s
        self.draws_per_step = self.num_chunk_draws / chunk.num_steps
        self._is_cut_short = not config.constant_cuts and self.num_chunk_draws < sum(one.num for one in admitted)
        self.empty_share = 1 - num_filled / len(chunk.sizes)

    @property
    def num_too_short(self) -> dict[str, int]:
        """Cuts of each source that are skipped in every epoch because they are shorter than min_cut_s."""
        return {one.source.name: one.num_too_short for one in self._admitted}

    @property
    def num_over_budget(self) -> dict[str, int]:
        """Cuts of each source that are cropped, put alone or skipped in every epoch, as `over_budget` says."""
        return {one.source.name: one.num_over_budget for one in self._admitted}

    @property
    def steps_per_epoch(self) -> dict[str, float]:
        """About how many steps one pass over each source takes."""
        total = sum(one.source.weight for one in self._admitted)
        return {one.source.name: one.num * total / one.source.weight / self.draws_per_step for one in self._admitted}

    def describe(self) -> list[str]:
        """Lines such as `step = 8 micro-batches x ~100 s = ~800 s of audio in ~64 cuts; padding 1.4 %`."""
        return [*self._sources(), self._step(), self._chunk()]

    def _sources(self) -> list[str]:
        lines = []
        total = sum(one.source.weight for one in self._admitted)
        for one in self._admitted:
            line = f"source {one.source.name}: {one.num:,} cuts = {one.audio_s / 3600:,.1f} h"
            if len(self._admitted) > 1:
                line += f", {one.source.weight} of {total} draws"
            steps = self.steps_per_epoch[one.source.name]
            line += f", ~{steps:,.{1 if steps < 100 else 0}f} steps an epoch"
            if one.num_too_short:
                line += f"; {one.num_too_short:,} shorter than {self._config.min_cut_s:g} s skipped"
            if one.num_over_budget:
                verb = {"crop": "cropped", "alone": "put alone", "skip": "skipped"}[self._config.over_budget]
                line += f"; {one.num_over_budget:,} longer than {self._config.allowed_s:g} s {verb}"
            lines.append(line)
        return lines

    def _step(self) -> str:
        num, audio_s = self._config.micro_batches_per_step, self.audio_s_per_step
        line = f"step = {num:,} micro-batches x ~{audio_s / num:,.0f} s = ~{audio_s:,.0f} s of audio "
        line += f"in ~{self.draws_per_step:,.0f} cuts; padding {100 * self.padding_share:.1f} %"
        if self.empty_share:
            line += f", {100 * self.empty_share:.0f} % of the micro-batches are empty"
        return line

    def _chunk(self) -> str:
        steps = "step" if self.num_chunk_steps == 1 else "steps"
        line = f"chunk = {self.num_chunk_draws:,} cuts planned together = {self.num_chunk_steps:,} whole {steps}"
        if self.num_chunk_steps < _FEW_STEPS and self._is_cut_short:
            line += f"; raise plan.chunk_draws={self._config.chunk_draws} for fuller micro-batches"
        return line
