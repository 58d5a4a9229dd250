"""Which layers a step passes over (Fan et al. 2019, arXiv:1909.11556): drawn from (seed, step), equal on all ranks.

It cannot be left to the model: torch is seeded for each micro-batch, which are others on each rank, and ranks that
pass over different layers wait for each other's gradients for ever.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.data.stream import BatchedStep, TrainStream
from core.seeding import generator


@dataclass(frozen=True)
class LayerDropStream:
    """The steps of a stream whose batches have a field `dropped_layers`, with that field set."""

    stream: TrainStream
    num_layers: int
    probability: float
    seed: int

    @property
    def num_examples(self) -> int:
        return self.stream.num_examples

    def describe(self) -> list[str]:
        return self.stream.describe()

    def steps(self, position: Mapping[str, Any] | None = None) -> Iterator[BatchedStep]:
        """Yield the stream's steps; a resumed run drops the layers that it would have dropped."""
        for step in self.stream.steps(position):
            dropped = self.dropped(step.position["plan"])
            yield replace(step, batches=[replace(batch, dropped_layers=dropped) for batch in step.batches])

    def dropped(self, place: Mapping[str, int]) -> tuple[int, ...]:
        """Return the layers to pass over in the step that ends at `place` of the plan, which no other does."""
        draws = generator(self.seed, "layer_drop", *place.values()).random(self.num_layers)
        return tuple(number for number, draw in enumerate(draws.tolist()) if draw < self.probability)
