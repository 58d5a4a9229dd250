"""Which text belongs to which speech: a loss over all pairs of a micro-batch on all ranks.

    output = model(audio, num_samples, text_features=features)                  # PairEmbeddings
    loss = contrastive_loss(output, text_keys=keys, num_targets=n, group=group)

A rank's sum holds the rows of its own pairs only, against the columns of all ranks. Scaled by ranks / (pairs of all
ranks) and averaged over ranks, as the loop and the engines do, its gradient is that of the whole batch in one process.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from core.losses.gathering import count_rows, gather_rows, place
from core.losses.output import LossOutput
from core.losses.siglip import sigmoid_sum

Kind = Literal["infonce", "local", "siglip"]

MAX_LOG_SCALE = math.log(100.0)


class PairEmbeddings(NamedTuple):
    """Row b of `speech` and row b of `text` belong together."""

    speech: Tensor  # (B, D), each of length 1, in fp32
    text: Tensor  # (B, D), each of length 1, in fp32
    log_scale: Tensor  # (1,)
    bias: Tensor | None = None  # (1,), of siglip


def contrastive_loss(
    output: PairEmbeddings,
    *,
    text_keys: Tensor | None,
    num_targets: int,
    group: dist.ProcessGroup | None,
    kind: Kind = "infonce",
) -> LossOutput:
    """Return the cross-entropy of each pair against all others, both ways (Radford et al. 2021, arXiv:2103.00020).

        L[i, j] = min(exp(log_scale), 100) <speech_i, text_j>
        loss_sum = sum_i ( -ln softmax(L[i, :])[i] - ln softmax(L[:, i])[i] ) / 2

    i: the first `num_targets` rows of this rank; j: those of all ranks of `group` (None: a process alone; ranks may
    have different numbers, 0 too, and all of them must call). Reduction: SUM over the rows i; divide it by their
    number. text_keys (B,) int64: j is left out for i where their keys are equal and i is not j, since an equal
    transcript is no wrong one; None: all count. Computed in fp32 (fp64 for fp64 rows), also under autocast.

    `kind` "infonce": gradients flow through the columns of other ranks too. "local": those are constants, which saves
    the communication of backward; that gradient is not the full batch's. "siglip": see siglip.py; it needs `bias`.

    Where log_scale is above ln 100, the scale is 100 and has no gradient; `num_targets` (log_scale - ln 100)^2 / 2 is
    added, which draws the parameter back, so that it can fall again. (A bare clamp would hold it there for ever; to
    clamp the parameter after each update reaches neither the fp32 masters nor the shards that engines keep.)

    Metrics, a pair: `speech_to_text_accuracy`, `text_to_speech_accuracy` among those columns, where another one as near
    as the own is a mistake, and `logit_scale`.

    Example: two pairs, orthogonal to each other, log_scale 0: loss_sum = 2 ln(1 + 1/e) = 0.626523.
    """
    if (kind == "siglip") != (output.bias is not None):
        raise ValueError(f"kind={kind} must be siglip for a model with a bias (bias_init), and only for one")
    with torch.autocast(output.speech.device.type, enabled=False):
        speech, text = _exact(output.speech)[:num_targets], _exact(output.text)[:num_targets]
        keys = None if text_keys is None else text_keys[:num_targets]
        log_scale = _exact(output.log_scale)
        scale = log_scale.clamp(max=MAX_LOG_SCALE).exp()
        counts = count_rows(num_targets, group)
        if kind == "siglip":
            assert output.bias is not None
            found = sigmoid_sum(speech, text, keys, scale=scale, bias=_exact(output.bias), counts=counts, group=group)
        else:
            found = _cross_entropy(speech, text, keys, scale=scale, counts=counts, group=group, kind=kind)
        excess = (log_scale - MAX_LOG_SCALE).clamp(min=0)
        loss_sum = found[0] + num_targets * excess.square().sum() / 2
    metrics = {
        "speech_to_text_accuracy": (found[1], float(num_targets)),
        "text_to_speech_accuracy": (found[2], float(num_targets)),
        "logit_scale": (num_targets * scale.detach().sum(), float(num_targets)),
    }
    return LossOutput(loss_sum, metrics)


def _cross_entropy(
    speech: Tensor,
    text: Tensor,
    keys: Tensor | None,
    *,
    scale: Tensor,
    counts: list[int],
    group: dist.ProcessGroup | None,
    kind: Kind,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return half the sum of both directions, and how many rows of each have the highest logit at their own column."""
    first = place(counts, group)
    is_left_out = None if keys is None else _equal_others(keys, gather_rows(keys, counts, group), first=first)
    if group is None:
        total, speech_correct, text_correct = _BothWays.apply(speech * scale, text, is_left_out)
        return total / 2, speech_correct, text_correct
    all_text, all_speech = (
        gather_rows(rows, counts, group) if kind == "infonce" else _own_alive(rows, first, counts, group)
        for rows in (text, speech)
    )
    of_speech, speech_correct = _OneWay.apply(speech * scale, all_text, is_left_out, first)
    of_text, text_correct = _OneWay.apply(text * scale, all_speech, is_left_out, first)
    return (of_speech + of_text) / 2, speech_correct, text_correct


def _own_alive(rows: Tensor, first: int, counts: list[int], group: dist.ProcessGroup) -> Tensor:
    """Return the rows of all ranks, as constants but for this rank's."""
    gathered = gather_rows(rows.detach(), counts, group)
    return torch.cat([gathered[:first], rows, gathered[first + len(rows) :]])


def _equal_others(keys: Tensor, all_keys: Tensor, *, first: int) -> Tensor:
    """Return, for keys (n,) and all_keys (N,), a mask (n, N): True where another pair has the same text."""
    is_equal = keys[:, None] == all_keys
    is_equal.diagonal(first).fill_(False)
    return is_equal


class _OneWay(torch.autograd.Function):
    """The sum_i logsumexp(L[i, :]) - L[i, first + i] of L = rows columns', and how many rows have their own highest.

    Only the logits are kept for backward: their softmax is one more pass, and the mask is in them as -inf.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, is_left_out: Tensor | None, first: int
    ) -> tuple[Tensor, Tensor]:
        logits = _logits(rows, columns, is_left_out)  # (n, N)
        total, log_sums, num_correct = _along(logits, dim=1, first=first)
        ctx.first = first
        ctx.save_for_backward(rows, columns, logits, log_sums)
        ctx.mark_non_differentiable(num_correct)
        return total, num_correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, columns, logits, log_sums = ctx.saved_tensors
        d_logits = (logits - log_sums[:, None]).exp_()
        d_logits.diagonal(ctx.first).sub_(1)
        d_logits.mul_(gradients[0])
        return d_logits @ columns, d_logits.t() @ rows, None, None


class _BothWays(torch.autograd.Function):
    """Both directions of one square L: one product of matrices forward and two backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, is_left_out: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        logits = _logits(rows, columns, is_left_out)  # (N, N)
        of_rows, along_rows, rows_correct = _along(logits, dim=1, first=0)
        of_columns, along_columns, columns_correct = _along(logits, dim=0, first=0)
        ctx.save_for_backward(rows, columns, logits, along_rows, along_columns)
        ctx.mark_non_differentiable(rows_correct, columns_correct)
        return of_rows + of_columns, rows_correct, columns_correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, columns, logits, along_rows, along_columns = ctx.saved_tensors
        d_logits = (logits - along_rows[:, None]).exp_()
        d_logits += (logits - along_columns).exp_()
        d_logits.diagonal().sub_(2)
        d_logits.mul_(gradients[0])
        return d_logits @ columns, d_logits.t() @ rows, None


def _logits(rows: Tensor, columns: Tensor, is_left_out: Tensor | None) -> Tensor:
    logits = rows @ columns.t()
    return logits if is_left_out is None else logits.masked_fill_(is_left_out, -math.inf)


def _along(logits: Tensor, *, dim: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cross-entropy along a dimension, summed; logsumexp along it; how many own logits are the highest."""
    own = logits.diagonal(first)
    if not len(own):
        return logits.new_zeros(()), own, logits.new_zeros((), dtype=torch.long)
    highest = logits.amax(dim)  # with its place it would take as long as the rest
    log_sums = (logits - highest.unsqueeze(dim)).exp_().sum(dim).log_()
    is_highest_alone = (own == highest) & ((logits == highest.unsqueeze(dim)).sum(dim) == 1)
    return (highest - own + log_sums).sum(), highest + log_sums, is_highest_alone.sum()


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
