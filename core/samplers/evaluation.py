"""The plan of an evaluation: every example of its sources exactly once, none filtered or dropped, in a fixed order."""

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

    def __init__(self, source: Source, rules: Rules) -> None:
        lengths = np.concatenate([block for _, block in blocks(source)])
        order = np.argsort(-lengths, kind="stable")
        capacity = rules.budget.capacity(rules.budget.padded(lengths[order]))
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
        mine = [[Draw(0, 0, row) for row in rows.tolist()] for rows in self._batches[dp_rank::dp_size]]
        most = -(-len(self._batches) // dp_size)
        return mine + [[] for _ in range(most - len(mine))]
