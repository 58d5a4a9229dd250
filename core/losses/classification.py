"""The loss of one class a clip: a language, a speaker, a command.

    def loss_fn(model, batch):
        return classification_loss(model(batch.inputs, batch.input_lengths), batch.targets[:, 0])

An empty micro-batch of the loop is one dummy row. Give it NO_CLASS (a Sample whose targets are [NO_CLASS], num_targets
0): it then adds exactly 0 to the loss, to every gradient and to the accuracy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from core.losses.output import LossOutput

NO_CLASS = -1


def classification_loss(logits: Tensor, classes: Tensor) -> LossOutput:
    """Return the cross-entropy of the clips that have a class.

        loss_sum = sum_b -ln softmax(logits[b])[classes[b]],   b with classes[b] not NO_CLASS

    logits (B, C), classes (B,) int64. Reduction: SUM over the clips that have a class; divide it by their number.
    Computed in fp32 (fp64 for fp64 logits), also under autocast. Metric `accuracy`, a clip: the highest logit is that
    of its class.

    Example: C = 2, logits (0, 0) of class 0 and (0, ln 3) of class 1: loss_sum = ln 2 + ln(4/3) = 0.980829.
    """
    has_class = classes != NO_CLASS
    with torch.autocast(logits.device.type, enabled=False):
        exact = logits if logits.dtype == torch.float64 else logits.float()
        loss_sum = F.cross_entropy(exact, classes, ignore_index=NO_CLASS, reduction="sum")
    num_correct = (exact.detach().argmax(dim=-1) == classes).sum()  # never NO_CLASS
    return LossOutput(loss_sum, {"accuracy": (num_correct, has_class.sum())})
