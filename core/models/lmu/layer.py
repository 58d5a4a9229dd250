"""The parallel Legendre Memory Unit: no recurrence through the hidden state, so whole sequences are a few GEMMs.

    u_t = f(W_u x_t + b_u)    m_t = A m_{t-1} + B u_t    h_t = g(W_m m_t + W_x x_t + b)

Chilkuri & Eliasmith (2021), Parallelizing Legendre Memory Unit Training, arXiv:2102.11417. Their u is one number
a frame; here `memory_channels` numbers, each remembered in `order` coefficients.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from core.models.lmu.legendre import Discretizer
from core.models.lmu.memory import Form, LegendreMemory

Activation = Literal["none", "relu", "gelu", "silu", "tanh"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class ParallelLMU(nn.Module):
    """A parallel LMU; bidirectional: half of what is remembered runs backwards, from the end of each sequence."""

    def __init__(
        self,
        *,
        input_dim: int,
        hidden_dim: int,
        order: int,
        theta: float,
        memory_channels: int = 1,
        bidirectional: bool = False,
        trainable_theta: bool = False,
        discretizer: Discretizer = "zoh",
        memory_activation: Activation = "relu",
        hidden_activation: Activation = "relu",
        form: Form = "auto",
    ) -> None:
        super().__init__()
        self.num_directions = 2 if bidirectional else 1
        if memory_channels % self.num_directions:
            raise ValueError(f"memory_channels={memory_channels} must be even in a bidirectional layer")
        self.form = form
        self.to_memory = nn.Linear(input_dim, memory_channels)
        self.memory_activation = ACTIVATIONS[memory_activation]()
        self.memory = LegendreMemory(order=order, theta=theta, discretizer=discretizer, trainable_theta=trainable_theta)
        memory_dim = order * memory_channels // self.num_directions
        self.from_memory = nn.ModuleList(
            nn.Linear(memory_dim, hidden_dim, bias=False) for _ in range(self.num_directions)
        )
        self.from_input = nn.Linear(input_dim, hidden_dim)
        self.hidden_activation = ACTIVATIONS[hidden_activation]()

    def forward(self, x: Tensor, is_valid: Tensor | None = None) -> Tensor:
        """Map x (B, T, input_dim) and is_valid (B, T) bool (for bidirectional only) to (B, T, hidden_dim)."""
        u = self.memory_activation(self.to_memory(x))  # (B, T, channels)
        return self.hidden_activation(self.from_input(x) + self._recall(u, is_valid))

    def stream(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map the next T >= 1 frames (B, T, input_dim) to (B, T, hidden_dim) and state (B, order, channels)."""
        if self.num_directions == 2:
            raise ValueError("bidirectional=true looks at the end of the sequence first; it cannot stream")
        memory, state = self.memory.stream(self.memory_activation(self.to_memory(x)), state)
        return self.hidden_activation(self.from_input(x) + self.from_memory[0](memory)), state

    @torch.compiler.disable  # GEMMs with cached constants: nothing to gain, and chunks differ with every length
    def _recall(self, u: Tensor, is_valid: Tensor | None) -> Tensor:
        """Return what the hidden state reads from the memory of u (B, T, channels): (B, T, hidden_dim)."""
        num_frames = u.size(1)
        if self.num_directions == 1:
            return self.from_memory[0](self.memory.unrolled(u, form=self.form))[:, :num_frames]
        if is_valid is not None:  # silence after the end: backwards, the memory starts empty at the last valid frame
            u = u.masked_fill(~is_valid[..., None], 0.0)
        forward, backward = u.chunk(2, dim=-1)
        read_forward = self.from_memory[0](self.memory.unrolled(forward, form=self.form))
        read_backward = self.from_memory[1](self.memory.unrolled(backward.flip(1), form=self.form))
        return read_forward[:, :num_frames] + read_backward[:, :num_frames].flip(1)
