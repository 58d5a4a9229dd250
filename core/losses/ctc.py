"""Connectionist temporal classification (Graves et al. 2006), summed over characters."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from core.losses.output import LossOutput
from core.text.vocabulary import BLANK_ID


def required_frames(targets: ArrayLike) -> int:
    """Return the fewest frames that can spell the targets: one each, and a blank between equal neighbours."""
    ids = np.asarray(targets)
    return len(ids) + int((ids[1:] == ids[:-1]).sum())


def is_feasible(num_frames: int, targets: ArrayLike) -> bool:
    """Return whether `ctc_loss` counts an utterance: it has targets, and its encoder frames can spell them.

    Collation counts the characters of these utterances only, so that the count and the sum agree.
    """
    return np.asarray(targets).size > 0 and required_frames(targets) <= num_frames


def ctc_loss(logits: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> LossOutput:
    """Return the negative log-likelihood of the targets under all their alignments.

        loss_sum = sum_b -ln sum_{paths that collapse to targets_b} prod_t softmax(logits[b, t])[path_t]

    logits (B, T, V) with the blank at 0, lengths (B,), targets (B, U), target_lengths (B,). Reduction: SUM over the
    utterances for which `is_feasible` holds; divide it by the number of their characters. An utterance that is not
    feasible, or has no targets, adds exactly 0 to the sum and to every gradient, and nothing behind a length is read.
    Computed in fp32 (fp64 for fp64 logits), also under autocast. Metric `infeasible`: the share of utterances with
    targets that do not fit.

    Example: T = 2 frames, V = 2, all logits equal, targets "a": three of the four paths (aa, a-, -a) spell it, so
    loss_sum = -ln(3/4) = 0.287682.
    """
    lengths, target_lengths = lengths.to(logits.device), target_lengths.to(logits.device)
    has_targets = target_lengths > 0
    is_counted = _is_counted(lengths, targets, target_lengths)
    with torch.autocast(logits.device.type, enabled=False):
        log_probs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(dim=-1)
        losses = F.ctc_loss(
            log_probs.transpose(0, 1),  # (T, B, V)
            targets,
            torch.where(is_counted, lengths, 1),  # rows that do not count get a finite loss, which is then left out
            torch.where(is_counted, target_lengths, 0),
            blank=BLANK_ID,
            reduction="none",
        )  # (B,)
        loss_sum = torch.where(is_counted, losses, 0).sum()
    return LossOutput(loss_sum, {"infeasible": ((has_targets & ~is_counted).sum(), has_targets.sum())})


def intermediate_ctc_loss(
    logits: Tensor,
    intermediate: Sequence[Tensor],
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    weight: float,
) -> LossOutput:
    """Return a weighted sum of the CTC losses of the last and of inner layers (Lee and Watanabe 2021, eq. 12).

        loss_sum = (1 - weight) CTC(logits) + weight mean_i CTC(intermediate_i)     (arXiv:2102.03216)

    Shapes and reduction as in `ctc_loss`; without intermediate logits it is that. Metric `final_loss`: the first term
    a character, without its weight.
    """
    final = ctc_loss(logits, lengths, targets, target_lengths)
    if not intermediate:
        return final
    others = [ctc_loss(one, lengths, targets, target_lengths).loss_sum for one in intermediate]
    lengths, target_lengths = lengths.to(logits.device), target_lengths.to(logits.device)
    num_counted = torch.where(_is_counted(lengths, targets, target_lengths), target_lengths, 0).sum()
    metrics = {**final.metrics, "final_loss": (final.loss_sum.detach(), num_counted)}
    return LossOutput((1 - weight) * final.loss_sum + weight * torch.stack(others).mean(), metrics)


def _is_counted(lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """Return `is_feasible` of each utterance: (B,) bool."""
    positions = torch.arange(targets.shape[1], device=targets.device)
    is_repeat = (targets[:, 1:] == targets[:, :-1]) & (positions[1:] < target_lengths[:, None])
    return (target_lengths > 0) & (target_lengths + is_repeat.sum(dim=1) <= lengths)
