"""The sigmoid loss of pairs (Zhai et al. 2023, arXiv:2303.15343), by a ring: no rank ever holds the texts of all.

    loss_sum = sum_i sum_j -ln sigmoid( z_ij (scale <speech_i, text_j> + bias) ),   z_ij = 1 if i is j, else -1

i: the speech of this rank; j: the texts of all ranks, which travel around the ring a block at a time. Memory is that
of one block: backward goes around once more and computes the logits of other ranks' blocks again, and the gradient of
a block travels with it and is home after the last hop.

Example: two pairs, orthogonal to each other, scale 1, bias 0: 2 ln(1 + 1/e) + 2 ln 2 = 2.012818.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def sigmoid_sum(
    speech: Tensor,
    text: Tensor,
    keys: Tensor | None,
    *,
    scale: Tensor,
    bias: Tensor,
    counts: list[int],
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, summed over this rank's i.

    speech, text (n, D), keys (n,) or None, scale, bias (1,); counts: n of each rank. Pairs of equal keys are left out
    where i is not j. Also the numbers of this rank's speech and of its texts to which no other is as near as their own.
    """
    if keys is None:  # no two are equal
        before = 0 if group is None else sum(counts[: dist.get_rank(group)])
        keys = torch.arange(before, before + len(text), device=text.device)
    return _Ring.apply(speech, text, scale, bias, keys, _Hops(counts, group))


@dataclass(frozen=True)
class _Hops:
    """Blocks of all ranks in turn, this rank's first."""

    counts: list[int]
    group: dist.ProcessGroup | None

    @property
    def sizes(self) -> list[int]:
        """The rows of the block that is here in hop 0, 1, ...: each comes from the rank before."""
        rank = 0 if self.group is None else dist.get_rank(self.group)
        return [self.counts[rank - hop] for hop in range(len(self.counts))]

    def padded(self, rows: Tensor) -> Tensor:
        """Return rows padded to the longest block, so that every hop is of one size."""
        return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, max(self.counts) - len(rows)))

    def pass_on(self, *blocks: Tensor) -> list[Tensor]:
        """Give blocks to the next rank and take those of the rank before."""
        if len(self.counts) == 1 or max(self.counts) == 0:
            return list(blocks)
        rank, size = dist.get_rank(self.group), len(self.counts)
        assert self.group is not None
        after, before = (dist.get_global_rank(self.group, (rank + step) % size) for step in (1, -1))
        received = [torch.empty_like(block) for block in blocks]
        sends = [dist.P2POp(dist.isend, block.contiguous(), after, self.group) for block in blocks]
        receives = [dist.P2POp(dist.irecv, block, before, self.group) for block in received]
        for work in dist.batch_isend_irecv(sends + receives):
            work.wait()
        return received


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, speech: Tensor, text: Tensor, scale: Tensor, bias: Tensor, keys: Tensor, hops: _Hops
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.hops = hops
        total = speech.new_zeros(())
        nearest_text = speech.new_full((len(speech),), -torch.inf)  # of those that are not its own
        block, block_keys = hops.padded(text), hops.padded(keys)
        nearest_speech = block.new_full((len(block),), -torch.inf)
        for hop, size in enumerate(hops.sizes):
            cosines = speech @ block[:size].t()  # (n, m)
            if hop == 0:
                own = cosines.diagonal()
                total = total + F.softplus(-torch.addcmul(bias, own, scale)).sum()
                ctx.save_for_backward(speech, text, scale, bias, keys, cosines)
            is_equal = keys[:, None] == block_keys[:size]
            others = cosines.masked_fill(is_equal, -torch.inf)
            total = total + F.softplus(torch.addcmul(bias, others, scale)).sum()  # 0 of a pair that is left out
            if 0 not in others.shape:
                nearest_text = torch.maximum(nearest_text, others.amax(1))
                nearest_speech[:size] = torch.maximum(nearest_speech[:size], others.amax(0))
            block, block_keys, nearest_speech = hops.pass_on(block, block_keys, nearest_speech)
        num_correct = (own > nearest_text).sum(), (own > nearest_speech[: len(text)]).sum()
        ctx.mark_non_differentiable(*num_correct)
        return total, *num_correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hops, upstream = ctx.hops, gradients[0]
        speech, text, scale, bias, keys, own_cosines = ctx.saved_tensors
        own = own_cosines.diagonal()  # (n,)
        d_own = -upstream * torch.sigmoid(-torch.addcmul(bias, own, scale))
        d_speech = text * (d_own * scale)[:, None]
        d_scale, d_bias = d_own @ own, d_own.sum()
        blocks = [hops.padded(text), hops.padded(keys)]
        if ctx.needs_input_grad[1]:
            blocks.append(hops.padded(speech * (d_own * scale)[:, None]))
        for hop, size in enumerate(hops.sizes):
            block, block_keys = blocks[0][:size], blocks[1][:size]
            cosines = own_cosines if hop == 0 else speech @ block.t()
            is_equal = keys[:, None] == block_keys
            d_logits = torch.addcmul(bias, cosines, scale).sigmoid_().mul_(upstream).masked_fill_(is_equal, 0.0)
            d_scale, d_bias = d_scale + (d_logits * cosines).sum(), d_bias + d_logits.sum()
            d_logits.mul_(scale)
            d_speech.addmm_(d_logits, block)
            if ctx.needs_input_grad[1]:
                blocks[2][:size].addmm_(d_logits.t(), speech)
            blocks = hops.pass_on(*blocks)
        d_text = blocks[2][: len(text)] if ctx.needs_input_grad[1] else None
        return d_speech, d_text, d_scale.expand_as(scale), d_bias.expand_as(bias), None, None
