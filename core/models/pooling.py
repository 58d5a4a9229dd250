"""From the frames of a clip, or the tokens of a text, to one vector; what is behind its end changes nothing."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from core.config.schema import section
from core.models.dropout import Dropout
from core.models.subsampling import valid_frames

Count = Annotated[int, Field(ge=1)]
PoolingKind = Literal["att_flat", "mean", "cls"]


@section
class PoolingConfig:
    """The pooling. `att_flat`: a learned weighted mean; `mean`: of all; `cls`: the first, where BERT's [CLS] stands.

    For att_flat: `hidden_dim` of the network that weighs (null: half of the width), its `dropout`, and `glimpses`: how
    many weighted means, each of an equal part of the channels.
    """

    kind: PoolingKind = "att_flat"
    hidden_dim: Count | None = None
    glimpses: Count = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        if self.kind != "att_flat" and (self.hidden_dim, self.glimpses, self.dropout) != (None, 1, 0.1):
            raise ValueError(f"hidden_dim, glimpses and dropout must be left out with kind={self.kind}: nothing learns")


def build_pooling(config: PoolingConfig, dim: int, *, output_dim: int) -> nn.Module:
    """Return a module that maps (B, T, dim), lengths (B,) to (B, output_dim); where nothing is learned, (B, dim)."""
    if config.kind == "att_flat":
        return AttFlat(config, dim, output_dim=output_dim)
    return Pooling(config.kind)


class Pooling(nn.Module):
    """The mean over time, or the first frame."""

    def __init__(self, kind: Literal["mean", "cls"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map x (B, T, D) and lengths (B,) to (B, D) in fp32."""
        if self.kind == "cls":
            return x[:, 0].float()
        is_valid = valid_frames(lengths, x.size(1))[..., None]  # (B, T, 1)
        return x.float().masked_fill(~is_valid, 0.0).sum(1) / lengths.clamp(min=1)[:, None]


class AttFlat(nn.Module):
    """Attention reduction (Yu et al. 2019, arXiv:1906.10770, "MCAN", section 3.3), with the names of its code.

    a = softmax over valid t of W2 dropout(relu(W1 x_t));   y = Wm [sum_t a_tg x_t[g-th part of the channels]]_g
    """

    def __init__(self, config: PoolingConfig, dim: int, *, output_dim: int) -> None:
        super().__init__()
        if dim % config.glimpses:
            raise ValueError(f"pooling.glimpses={config.glimpses} must divide the width of the speech encoder, {dim}")
        self.glimpses = config.glimpses
        self.mlp = AttentionMLP(dim, config.hidden_dim or dim // 2, config.glimpses, dropout=config.dropout)
        self.linear_merge = nn.Linear(dim, output_dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map x (B, T, D) and lengths (B,) to (B, output_dim)."""
        is_valid = valid_frames(lengths.clamp(min=1), x.size(1))[..., None]  # (B, T, 1): one frame at least, or NaN
        weights = self.mlp(x).masked_fill(~is_valid, -torch.inf).softmax(1)  # (B, T, G)
        parts = x.masked_fill(~is_valid, 0.0).unflatten(2, (self.glimpses, -1))  # (B, T, G, D / G)
        return self.linear_merge(torch.einsum("btg,btgd->bgd", weights.to(x.dtype), parts).flatten(1))


class AttentionMLP(nn.Module):
    """A hidden layer, then a logit for each glimpse."""

    def __init__(self, dim: int, hidden_dim: int, glimpses: int, *, dropout: float) -> None:
        super().__init__()
        self.fc = nn.ModuleDict({"linear": nn.Linear(dim, hidden_dim)})
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(hidden_dim, glimpses)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, G)."""
        return self.linear(self.dropout(F.relu(self.fc["linear"](x))))
