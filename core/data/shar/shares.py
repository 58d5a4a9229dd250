"""A check across ranks that the data is shared out as it must be: tp ranks alike, dp ranks apart."""

from collections.abc import Sequence
from typing import Any

from core.distributed import Ranks


def check_same(ranks: Ranks, value: Any, *, name: str) -> None:
    """ValueError, with the ranks, where not all ranks have the same `value`. All ranks together."""
    values = ranks.gather(value)
    others = [rank for rank, other in enumerate(values) if other != values[0]]
    if others:
        raise ValueError(
            f"data.order=randomized: {name} must be the same on all ranks, but rank 0 has {values[0]!r} and rank "
            f"{others[0]} has {values[others[0]]!r}; ranks that differ from rank 0: {others}"
        )


def check_shares(ranks: Ranks, sample_ids: Sequence[str], *, step: int) -> None:
    """ValueError, with the ranks, where tp ranks of a group read different examples or dp ranks the same ones.

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
