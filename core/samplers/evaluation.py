"""The plan of an evaluation: every cut of one source exactly once, none filtered, none dropped, in a fixed order."""

import numpy as np

from core.samplers.admission import Source, blocks
from core.samplers.blend import Draw
from core.samplers.rules import PlanConfig


class EvaluationPlan:
    """Batches by length under the budgets of `config`, the longest first; the same batches on any number of ranks.

    A cut over budget is a batch of its own; in static shapes, whose reader crops it, it counts as the longest allowed.
    Of the training plan's rules only the budgets apply. Raises ValueError for a source without rows or with a duration
    that is none.
    """

    def __init__(self, source: Source, config: PlanConfig) -> None:
        durations = np.concatenate([block for _, block in blocks(source)])
        order = np.argsort(-durations, kind="stable")
        capacity = config.capacity(config.padded_s(durations[order]))
        self._batches: list[np.ndarray] = []
        begin = 0
        while begin < len(order):
            end = begin + int(capacity[begin])
            self._batches.append(order[begin:end])
            begin = end

    def batches(self, dp_rank: int, dp_size: int) -> list[list[Draw]]:
        """This rank's share: batches dp_rank, dp_rank + dp_size, ..., with empty ones at the end of short ranks.

        Every rank gets the same number.
        """
        assert 0 <= dp_rank < dp_size, (dp_rank, dp_size)
        mine = [[Draw(0, 0, row) for row in rows.tolist()] for rows in self._batches[dp_rank::dp_size]]
        most = -(-len(self._batches) // dp_size)
        return mine + [[] for _ in range(most - len(mine))]
