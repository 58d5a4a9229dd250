"""Losses of pairs written as their formulas, one term after another; and a tiny model of two sides."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.losses.contrastive import Kind, PairEmbeddings


def infonce(speech: Tensor, text: Tensor, log_scale: Tensor, keys: list[int]) -> Tensor:
    """The sum over all pairs of the mean of both directions."""
    logits = log_scale.clamp(max=math.log(100)).exp() * speech @ text.t()
    terms = []
    for i, key in enumerate(keys):
        others = [j for j, other in enumerate(keys) if j == i or other != key]
        for line in (logits[i], logits[:, i]):
            terms.append(-line[i] + torch.stack([line[j] for j in others]).exp().sum().log())
    return torch.stack(terms).sum() / 2


def siglip(speech: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor, keys: list[int]) -> Tensor:
    """The sum over all i, j, in a double loop."""
    scale, total = log_scale.clamp(max=math.log(100)).exp(), torch.zeros((), dtype=speech.dtype)
    for i, key in enumerate(keys):
        for j, other in enumerate(keys):
            if i != j and key == other:
                continue
            sign = 1.0 if i == j else -1.0
            total = total - torch.sigmoid(sign * (scale * (speech[i] @ text[j]) + bias)).log().sum()
    return total


def reference(output: PairEmbeddings, keys: list[int], kind: Kind) -> Tensor:
    if kind == "siglip":
        assert output.bias is not None
        return siglip(output.speech, output.text, output.log_scale, output.bias, keys)
    return infonce(output.speech, output.text, output.log_scale, keys)


class TwoSides(nn.Module):
    """A linear layer a side, dropout on the speech, a scale, perhaps a bias."""

    def __init__(self, *, bias: float | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.of_speech, self.of_text, self.dropout = nn.Linear(6, 4), nn.Linear(5, 4), nn.Dropout(dropout)
        self.log_scale = nn.Parameter(torch.tensor([1.25]))
        self.bias = None if bias is None else nn.Parameter(torch.tensor([bias]))

    def forward(self, speech: Tensor, text: Tensor) -> PairEmbeddings:
        """(B, 6), (B, 5)."""
        bias = None if self.bias is None else self.bias.clone()
        speech = F.normalize(self.dropout(self.of_speech(speech)), dim=1)
        return PairEmbeddings(speech, F.normalize(self.of_text(text), dim=1), self.log_scale.clone(), bias)


def two_sides(kind: Kind, *, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> TwoSides:
    torch.manual_seed(3)
    return TwoSides(bias=-2.0 if kind == "siglip" else None, dropout=dropout).to(dtype)


def examples(num_pairs: int, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs of both sides, (N, 6) and (N, 5), that have something in common."""
    torch.manual_seed(7)
    common = torch.randn(num_pairs, 3, dtype=torch.float64)
    noise = 0.3 * torch.randn(num_pairs, 11, dtype=torch.float64)
    speech, text = torch.cat([common, common], 1) + noise[:, :6], torch.cat([common, common[:, :2]], 1) + noise[:, 6:]
    return speech.to(dtype), text.to(dtype)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative to the largest gradient."""
    assert one.keys() == other.keys()
    scale = max(float(value.abs().max()) for value in other.values())
    return max(float((one[name] - other[name]).abs().max()) for name in other) / scale
