"""The plan of an evaluation: every example of its sources exactly once, none filtered or dropped, in a fixed order."""

from collections.abc import Sequence

import numpy as np

from core.samplers.admission import Source, blocks
from core.samplers.blend import Draw
from core.samplers.rules import Rules


class EvaluationPlan:
    """Batches by length under the budget of the rules, the longest first; the same batches on any number of ranks.

    An example over budget is a batch of its own; in static shapes, whose reader crops it, it counts as the longest
    allowed. Of the training plan's rules only the budget applies, and weights of sources are left aside. Raise
    ValueError for a source without rows or with a length that is none.
    """

    def __init__(self, sources: Sequence[Source], rules: Rules) -> None:
        lengths = np.concatenate([block for source in sources for _, block in blocks(source, rules.budget)])
        order = np.argsort(-lengths, kind="stable")
        capacity = rules.budget.capacity(rules.budget.padded(lengths[order]))
        self._first_rows = np.cumsum([0, *(len(source.lengths) for source in sources)])
        self._batches: list[np.ndarray] = []
        begin = 0
        while begin < len(order):
            end = begin + int(capacity[begin])
            self._batches.append(order[begin:end])
            begin = end

    def batches(self, dp_rank: int, dp_size: int) -> list[list[Draw]]:
        """Return this rank's share: batches dp_rank, dp_rank + dp_size, ..., as many as every other rank has.

        The last ones of short ranks are empty.
        """
        assert 0 <= dp_rank < dp_size, (dp_rank, dp_size)
        mine = [self._draws(rows) for rows in self._batches[dp_rank::dp_size]]
        most = -(-len(self._batches) // dp_size)
        return mine + [[] for _ in range(most - len(mine))]

    def _draws(self, rows: np.ndarray) -> list[Draw]:
        """Return the examples at some rows of all sources, one behind the other."""
        source = np.searchsorted(self._first_rows, rows, side="right") - 1
        row = rows - self._first_rows[source]
        return [Draw(*one) for one in zip(source.tolist(), [0] * len(rows), row.tolist(), strict=True)]
