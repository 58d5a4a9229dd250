"""The loss of HuBERT: which cluster is hidden under the mask (Hsu et al. 2021, arXiv:2106.07447, eq. 3 and 4)."""

from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from core.config.schema import section
from core.losses.output import LossOutput, Metrics


@section
class MaskedPredictionConfig:
    """The weights of the parts of the loss, relative to that of the masked frames.

    `unmasked_weight`: of the frames that are not masked (fairseq's pred_nomask_weight). 0 in the published models; more
    than 0 makes the convolutions learn sooner where there is little speech, and all frames are predicted, which costs
    time. `penalty_weight`: of the mean square of the convolutions' features.
    """

    unmasked_weight: Annotated[float, Field(ge=0)] = 0.0
    penalty_weight: Annotated[float, Field(ge=0)] = 10.0


def frames_to_predict(labels: Tensor, masked_frames: Tensor, config: MaskedPredictionConfig) -> Tensor:
    """Return the numbers of the frames whose logits `prediction_loss` takes: the masked ones (B, K), or all (B, T)."""
    if not config.unmasked_weight:
        return masked_frames
    return torch.arange(labels.size(1), device=labels.device).expand_as(labels)


def prediction_loss(
    logits: Tensor,
    labels: Tensor,
    num_frames: Tensor,
    masked_frames: Tensor,
    penalties: Tensor,
    *,
    config: MaskedPredictionConfig,
) -> LossOutput:
    """Return `masked_prediction_loss` plus the weighted cross-entropy of the frames that are not masked.

    logits of `frames_to_predict`: (B, K, N) or (B, T, N); labels (B, T), num_frames (B,), masked_frames (B, K),
    penalties (B,). Reduction: SUM, to be divided by the number of masked frames. Further metric: `unmasked_accuracy`.
    """
    targets, weight = labels.gather(1, masked_frames), config.penalty_weight
    if not config.unmasked_weight:
        return masked_prediction_loss(logits, targets, penalties, penalty_weight=weight)
    index = masked_frames[..., None].expand(-1, -1, logits.size(2))
    masked = masked_prediction_loss(logits.gather(1, index), targets, penalties, penalty_weight=weight)
    with torch.autocast(logits.device.type, enabled=False):
        full = logits.to(torch.promote_types(logits.dtype, torch.float32))
        cross_entropy = F.cross_entropy(full.mT, labels, reduction="none")  # (B, T)
        is_open = _open_frames(labels, num_frames, masked_frames)
        unmasked = torch.where(is_open, cross_entropy, 0.0).sum()
    num_correct = ((logits.detach().argmax(-1) == labels) & is_open).sum()
    metrics = {**masked.metrics, "unmasked_accuracy": (num_correct, is_open.sum())}
    return replace(masked, loss_sum=masked.loss_sum + config.unmasked_weight * unmasked, metrics=metrics)


def masked_prediction_loss(
    logits: Tensor, targets: Tensor, penalties: Tensor, *, penalty_weight: float = 10.0
) -> LossOutput:
    """Return the cross-entropy of the masked frames, and a penalty on large features of the convolutions.

        loss_sum = sum_b [ sum_{k=1..K} -ln softmax(logits[b, k])[targets[b, k]] + penalty_weight K penalties[b] ]

    logits (B, K, N), targets (B, K) int64, penalties (B,): the mean square of each clip's features. Reduction: SUM over
    the B K masked frames; divide it by their number. With clips of equal length and one batch this is the loss of
    fairseq and torchaudio; each clip's penalty counts by its own masked frames, so that the sum does not depend on
    which clips share a batch. Computed in fp32. Metrics: `masked_cross_entropy`, `masked_accuracy`, `feature_penalty`
    (the mean square), each per masked frame; a frame counts as correct if its target has the highest logit.

    Example: N = 2, one clip, one masked frame with logits (0, 0), penalty 0.05: loss_sum = ln 2 + 0.5 = 1.193147.
    """
    num_clips, num_masked = targets.shape
    with torch.autocast(logits.device.type, enabled=False):
        full = logits.to(torch.promote_types(logits.dtype, torch.float32))
        flat, wanted = full.flatten(0, 1), targets.flatten()
        cross_entropy = F.cross_entropy(flat, wanted, reduction="sum")
        penalty = penalties.to(full.dtype).sum() * num_masked
    count = float(num_clips * num_masked)
    num_correct = (flat.detach().argmax(-1) == wanted).sum()
    metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {
        "masked_cross_entropy": (cross_entropy.detach(), count),
        "masked_accuracy": (num_correct, count),
        "feature_penalty": (penalty.detach(), count),
    }
    return LossOutput(cross_entropy + penalty_weight * penalty, metrics)


def frame_accuracies(logits: Tensor, labels: Tensor, num_frames: Tensor, masked_frames: Tensor) -> Metrics:
    """Count the frames that have the highest logit at their label, masked and not, of a whole batch, for validation.

    logits (B, T, N) of all frames, labels (B, T), num_frames (B,), masked_frames (B, K). Metrics `masked_accuracy` and
    `unmasked_accuracy`.
    """
    is_open = _open_frames(labels, num_frames, masked_frames)
    is_masked = torch.arange(labels.size(1), device=labels.device) < num_frames[:, None]
    is_masked &= ~is_open
    is_correct = logits.argmax(-1) == labels
    return {
        "masked_accuracy": ((is_correct & is_masked).sum(), is_masked.sum()),
        "unmasked_accuracy": ((is_correct & is_open).sum(), is_open.sum()),
    }


def _open_frames(labels: Tensor, num_frames: Tensor, masked_frames: Tensor) -> Tensor:
    """Return a mask (B, T): True at the frames of a clip that are not masked."""
    is_valid = torch.arange(labels.size(1), device=labels.device) < num_frames[:, None]
    return is_valid & ~torch.zeros_like(is_valid).scatter_(1, masked_frames, True)
