"""A recurrence of which a part is squashed, at one GEMM a frame, with the backward pass written out.

    s_t = [tanh(z[:hidden]), z[hidden:]]    z = c_t + s_{t-1} K

Autograd would walk a graph of several nodes a frame, and add up dK frame by frame. Here the backward pass keeps dz of
all frames, and dK is one GEMM in the end.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def fused_recurrence(c: Tensor, K: Tensor, start: Tensor, hidden_dim: int) -> Tensor:
    """Map c (T, B, D), K (D, D), start (B, D) to states (T, B, D), the first `hidden_dim` features squashed."""
    return _FusedRecurrence.apply(c, K, start, hidden_dim)


class _FusedRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, c: Tensor, K: Tensor, start: Tensor, hidden_dim: int) -> Tensor:
        states = torch.empty_like(c, memory_format=torch.contiguous_format)
        previous = start
        for frame, state in zip(c.unbind(0), states.unbind(0), strict=True):
            torch.addmm(frame, previous, K, out=state)
            state[:, :hidden_dim].tanh_()
            previous = state
        ctx.save_for_backward(K, start, states)
        ctx.hidden_dim = hidden_dim
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor | None, ...]:
        K, start, states = ctx.saved_tensors
        slope = 1 - states[..., : ctx.hidden_dim].square()  # of tanh
        d_z = torch.empty_like(states)
        K_transposed = K.T.contiguous()
        d_next: Tensor | None = None  # dz of the frame after
        for t in range(states.size(0) - 1, -1, -1):
            if d_next is None:
                d_z[t] = d_states[t]
            else:
                torch.addmm(d_states[t], d_next, K_transposed, out=d_z[t])
            d_z[t, :, : ctx.hidden_dim].mul_(slope[t])
            d_next = d_z[t]
        before = torch.cat([start[None], states[:-1]])  # the state that each frame read
        d_K = before.flatten(0, 1).T @ d_z.flatten(0, 1) if ctx.needs_input_grad[1] else None
        d_start = d_z[0] @ K_transposed if ctx.needs_input_grad[2] else None
        return d_z, d_K, d_start, None
