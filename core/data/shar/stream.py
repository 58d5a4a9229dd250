"""`data.order: randomized`: the steps of a run from a Shar directory, in a new random order for each link.

For sources that can only be streamed. What an exact order promises does not hold here: a resume does not go on where
the link before it stopped, and another number of ranks or loader workers reads another order. The order follows from
the link's seed and the step that the link begins at, so a link that is repeated from its start reads the same again.
That tp ranks read alike and dp ranks apart is checked at the start.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from core.data.batch import MakeSample, Sample
from core.data.shar.batches import BUFFER_CUTS, SharBatches
from core.data.shar.shards import Shar
from core.data.stream import BatchedStep, LoaderConfig, load
from core.distributed import Ranks
from core.rundir.environment import link_from_environment
from core.samplers.admission import Source, admit
from core.samplers.plan import PlanConfig, check_dp_size
from core.seeding import key64

logger = logging.getLogger(__name__)

CHECKED_STEPS = 3  # at the start of a link; a wrong seed shows in the first


def link_seed(run_seed: int, link: int) -> int:
    """Return the link's seed, as the launcher drew it or derived from the run's seed and the link's number."""
    _, seed = link_from_environment()
    return key64(run_seed, "link", link) if seed is None else seed


def open_shar(directory: str, ranks: Ranks) -> Shar:
    """Open a directory on all ranks; rank 0 reads for all. ValueError on all of them where it cannot be read."""
    shar: Shar | ValueError | None = None
    if ranks.is_first:
        try:
            shar = Shar.open(Path(directory))
        except ValueError as error:  # the others must hear of it before anyone leaves
            shar = error
    found: Shar | ValueError = ranks.from_first(shar)
    if isinstance(found, ValueError):
        raise found
    return found


class SharStream:
    """The endless steps of this rank."""

    def __init__(
        self,
        shar: Shar,
        make_sample: MakeSample,
        plan: PlanConfig,
        *,
        dummy: Sample,
        sample_rate_hz: int,
        config: LoaderConfig,
        ranks: Ranks,
        seed: int,
        accept_data: bool = False,
    ) -> None:
        """Take the link's `seed`. ValueError for more readers than shards, and for cuts that the plan refuses."""
        check_dp_size(ranks.dp_size, micro_batches_per_step=plan.micro_batches_per_step)
        if plan.over_budget == "crop":
            raise ValueError("plan.over_budget=crop: data.order=randomized crops nothing; use skip, alone or error")
        if plan.alike_micro_batches is not None:
            raise ValueError(
                "plan.alike_micro_batches must be null: data.order=randomized makes no steps of like length"
            )
        workers = max(1, config.num_workers)
        self.num_readers = ranks.dp_size * workers
        if self.num_readers > len(shar.shards):
            raise ValueError(
                f"data.train={shar} has {len(shar.shards)} shards for {self.num_readers} readers (dp size "
                f"{ranks.dp_size} x loader.num_workers={config.num_workers}), and each needs one of its own; "
                f"{_advice(len(shar.shards), ranks.dp_size)}"
            )
        self._admitted = admit(Source(shar.directory.name, shar.durations_s), plan.budget)
        self._shar, self._plan, self._config, self._ranks = shar, plan, config, ranks
        self._make_sample, self._dummy, self._rate_hz = make_sample, dummy, sample_rate_hz
        self._seed, self._accept_data = seed, accept_data
        self._first_reader = ranks.dp_rank * workers
        self.num_examples = self._admitted.num
        self.fingerprint = f"shar {len(shar.shards)} {len(shar.durations_s)} {self._admitted.checksum:08x}"

    def describe(self) -> list[str]:
        found = self._admitted
        num_shards = len(self._shar.shards)
        line = f"shar {self._shar}: {found.num:,} cuts = {found.total_length / 3600:,.1f} h in {num_shards} shards"
        if found.num_too_short:
            line += f"; {found.num_too_short:,} shorter than {self._plan.min_cut_s:g} s skipped"
        if found.num_over_budget:
            verb = "skipped" if self._plan.over_budget == "skip" else "put alone"
            line += f"; {found.num_over_budget:,} longer than {self._plan.allowed_s:g} s {verb}"
        buffer = min(BUFFER_CUTS, self._plan.chunk_draws)
        return [line, f"data.order=randomized: {self.num_readers} readers, each mixes at most {buffer:,} cuts"]

    def steps(self, position: Mapping[str, Any] | None = None) -> Iterator[BatchedStep]:
        """Yield steps in a new order; `position` only says how far the run is. All ranks together.

        ValueError where the run was trained on other data or in exact order so far, unless that is accepted; and where
        the ranks do not share the data as they must.
        """
        segment, num_steps, num_examples = self._begin(position)
        check_same(self._ranks, self._seed, name="the seed of the link")
        check_same(self._ranks, num_steps, name="the step that the link begins at")
        logger.info("data.order=randomized: a new order begins, of link seed %d at step %d", self._seed, num_steps)
        dataset = SharBatches(
            self._shar,
            self._make_sample,
            self._dummy,
            self._rate_hz,
            self._plan,
            seed=key64(self._seed, "shar", num_steps),
            first_reader=self._first_reader,
            num_readers=self.num_readers,
        )
        batches = iter(load(dataset, config=self._config, ranks=self._ranks))
        own = self._plan.micro_batches_per_step // self._ranks.dp_size
        for number in count(1):
            step = [next(batches) for _ in range(own)]
            ids = [one for batch in step for one in (*batch.sample_ids, *(bad.sample_id for bad in batch.bad))]
            if number <= CHECKED_STEPS:
                check_shares(self._ranks, ids, step=number)
            num_examples += len(ids) * self._ranks.dp_size
            place = {
                "order": "randomized",
                "link_seed": self._seed,
                "steps": num_steps + number,
                "examples": num_examples,  # about: this rank's, times dp ranks
                "plan": {"segment": segment, "chunk": 0, "offset": 0},  # from where an exact order would go on
                "fingerprint": self.fingerprint,
            }
            yield BatchedStep(step, place, num_examples / self.num_examples)

    def _begin(self, position: Mapping[str, Any] | None) -> tuple[int, int, int]:
        """Return (segment, steps, examples) of the run so far."""
        if position is None:
            return 0, 0, 0
        if position["fingerprint"] != self.fingerprint and not self._accept_data:
            before = "other data" if position.get("order") == "randomized" else "data.order=exact"
            raise ValueError(
                f"data: this run was trained on {before} so far; restore that, start a new run, or go on with "
                f"{self._shar} by run.accept_data=true"
            )
        return position["plan"]["segment"], position.get("steps", 0), position.get("examples", 0)


def _advice(num_shards: int, dp_size: int) -> str:
    fewer = num_shards // dp_size
    smaller = "make smaller shards (python -m manifests.shar --shard-size)"
    return f"set loader.num_workers to at most {fewer}, or {smaller}" if fewer else smaller


def check_same(ranks: Ranks, value: Any, *, name: str) -> None:
    """Raise ValueError, with the ranks, where not all have the same `value`. All ranks together."""
    values = ranks.gather(value)
    others = [rank for rank, other in enumerate(values) if other != values[0]]
    if others:
        raise ValueError(
            f"data.order=randomized: {name} must be the same on all ranks, but rank 0 has {values[0]!r} and rank "
            f"{others[0]} has {values[others[0]]!r}; ranks that differ from rank 0: {others}"
        )


def check_shares(ranks: Ranks, sample_ids: Sequence[str], *, step: int) -> None:
    """Raise ValueError, with the ranks, where tp ranks read different examples or dp ranks the same ones.

    All ranks together; `sample_ids` are those of this rank in one step.
    """
    everyone = ranks.gather(list(sample_ids))
    owners: dict[str, int] = {}
    for first in range(0, ranks.world_size, ranks.tp_size):
        for rank in range(first + 1, first + ranks.tp_size):
            if everyone[rank] != everyone[first]:
                raise ValueError(
                    f"data.order=randomized: ranks {first} and {rank} are tp ranks of one group and must read the same "
                    f"examples, but in step {step} of this link {_contrast(everyone[first], everyone[rank])}; "
                    "look at their seeds, and at whether both see the same files"
                )
        for sample_id in everyone[first]:
            owner = owners.setdefault(sample_id, first)
            if owner != first:
                raise ValueError(
                    f"data.order=randomized: ranks {owner} and {first} are different dp ranks and must read different "
                    f"examples, but in step {step} of this link both read {sample_id!r}; look at their seeds, and at "
                    "whether this id stands in two shards"
                )


def _contrast(one: Sequence[str], other: Sequence[str]) -> str:
    pairs = zip([*one, "nothing"], [*other, "nothing"], strict=False)
    return next(f"one reads {left!r} where the other reads {right!r}" for left, right in pairs if left != right)
