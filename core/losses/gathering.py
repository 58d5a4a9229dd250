"""Rows of all ranks on every rank, with the gradient that makes many ranks equal one."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def count_rows(num_rows: int, group: dist.ProcessGroup | None) -> list[int]:
    """Return the number of rows of each rank of the group.

    It travels between CPUs, so that the host does not wait for the accelerator: the group needs a CPU backend as well,
    as the groups of core/distributed.py have it. None: a process alone.
    """
    if group is None:
        return [num_rows]
    mine = torch.tensor([num_rows])
    counts = [torch.zeros_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, mine, group=group)
    return [int(count) for count in counts]


def place(counts: list[int], group: dist.ProcessGroup | None) -> int:
    """Return where the rows of this rank begin among those of all."""
    return 0 if group is None else sum(counts[: dist.get_rank(group)])


def gather_rows(rows: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """Return the rows (n, ...) of each rank as (N, ...) in rank order; ranks may have different n.

    Backward adds up what all ranks' losses say about a row and gives it to the rank that the row came from. So the
    gradient of the sum of all ranks' losses is exact, where each rank's loss is a sum over its own rows.
    """
    return rows if group is None else _Gather.apply(rows, counts, group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.counts, ctx.group = counts, group
        longest = max(counts)
        if longest == 0:
            return rows.new_empty(rows.shape)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = rows.new_empty(len(counts) * longest, *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, padded, group=group)
        if min(counts) == longest:
            return gathered
        return torch.cat([block[:count] for block, count in zip(gathered.split(longest), counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        if max(ctx.counts):
            dist.all_reduce(total, group=ctx.group)
        first, own = place(ctx.counts, ctx.group), ctx.counts[dist.get_rank(ctx.group)]
        return total[first : first + own], None, None
