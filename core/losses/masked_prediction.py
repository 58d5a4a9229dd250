"""The loss of HuBERT: which cluster is hidden under the mask (Hsu et al. 2021, arXiv:2106.07447, eq. 3 and 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from core.losses.output import LossOutput, Metrics


def masked_prediction_loss(
    logits: Tensor, targets: Tensor, penalties: Tensor, *, penalty_weight: float = 10.0
) -> LossOutput:
    """Cross-entropy of the masked frames, and a penalty on large features of the convolutions.

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
        flat, wanted = logits.float().flatten(0, 1), targets.flatten()
        cross_entropy = F.cross_entropy(flat, wanted, reduction="sum")
        penalty = penalties.float().sum() * num_masked
    count = float(num_clips * num_masked)
    num_correct = (flat.detach().argmax(-1) == wanted).sum()
    metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {
        "masked_cross_entropy": (cross_entropy.detach(), count),
        "masked_accuracy": (num_correct, count),
        "feature_penalty": (penalty.detach(), count),
    }
    return LossOutput(cross_entropy + penalty_weight * penalty, metrics)


def frame_accuracies(logits: Tensor, labels: Tensor, num_frames: Tensor, masked_frames: Tensor) -> Metrics:
    """How many frames have the highest logit at their label, masked and not, of a whole batch, for validation.

    logits (B, T, N) of all frames, labels (B, T), num_frames (B,), masked_frames (B, K). Metrics `masked_accuracy` and
    `unmasked_accuracy`.
    """
    is_valid = torch.arange(labels.size(1), device=labels.device) < num_frames[:, None]
    is_masked = torch.zeros_like(is_valid).scatter_(1, masked_frames, True) & is_valid
    is_correct = (logits.argmax(-1) == labels) & is_valid
    is_open = is_valid & ~is_masked
    return {
        "masked_accuracy": ((is_correct & is_masked).sum(), is_masked.sum()),
        "unmasked_accuracy": ((is_correct & is_open).sum(), is_open.sum()),
    }
