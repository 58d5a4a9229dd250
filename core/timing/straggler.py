"""A rank that holds the others up: its ratio in every record, and one warning when it begins."""

import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)


class Straggler:
    """The ranks' own times compared on rank 0, not counting what each waited for others."""

    def __init__(self, *, warn_ratio: float) -> None:
        self._warn_ratio = warn_ratio
        self._known: int | None = None

    def observe(self, own_s: Sequence[float], *, hosts: Sequence[str]) -> dict[str, float | None]:
        """Return `straggler_ratio` (slowest / mean, 1 is best) and `straggler_rank` since the last record."""
        if len(own_s) < 2 or not sum(own_s):
            return {}
        rank = max(range(len(own_s)), key=lambda place: own_s[place])
        ratio = own_s[rank] * len(own_s) / sum(own_s)
        if ratio <= self._warn_ratio:
            self._known = None
        elif rank != self._known:
            self._known = rank
            logger.warning(
                "rank %d on %s holds the others up: it takes %.2f x the mean of all ranks", rank, hosts[rank], ratio
            )
        return {"straggler_ratio": ratio, "straggler_rank": rank}
