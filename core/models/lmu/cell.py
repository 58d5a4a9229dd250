"""The Legendre Memory Unit as published: memory and hidden state feed each other, frame by frame.

    u_t = e_x x_t + e_h h_{t-1} + e_m m_{t-1}
    m_t = A m_{t-1} + B u_t
    h_t = tanh(W_x x_t + W_h h_{t-1} + W_m m_t)

Voelker, Kajic, Eliasmith (2019), Legendre Memory Units, NeurIPS. `LMUCell.step` is this definition with the options of
keras-lmu; `LMU` runs sequences, with the tanh cell at one GEMM a frame (`fused_recurrence`).
"""

import math
from typing import Annotated, Literal, NamedTuple

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config.schema import section
from core.models.lmu import legendre
from core.models.lmu.fused_recurrence import fused_recurrence

Probability = Annotated[float, pydantic.Field(ge=0, lt=1)]


@section
class LMUCellConfig:
    """Sizes and options; the defaults are the cell of the paper."""

    input_dim: int
    hidden_dim: int  # 0 with hidden_cell=none
    order: int
    theta: float
    memory_channels: int = 1  # numbers a frame that are remembered
    discretizer: legendre.Discretizer = "zoh"
    trainable_theta: bool = False
    learn_a: bool = False  # train the discrete A itself
    learn_b: bool = False
    hidden_to_memory: bool = True  # e_h
    memory_to_memory: bool = True  # e_m
    input_to_hidden: bool = True  # W_x
    hidden_cell: Literal["tanh", "gru", "lstm", "none"] = "tanh"  # none: the memory is the output
    use_bias: bool = False  # of u and of the tanh cell
    dropout: Probability = 0.0  # of x on its way into memory; one mask a sequence, for all its frames
    recurrent_dropout: Probability = 0.0  # of h and m on their way into memory; likewise

    def __post_init__(self) -> None:
        if (self.hidden_dim == 0) != (self.hidden_cell == "none"):
            raise ValueError(f"hidden_dim={self.hidden_dim} must be 0 with hidden_cell=none, and only then")
        if self.hidden_cell == "none" and self.hidden_to_memory:
            raise ValueError("hidden_to_memory=true must be false with hidden_cell=none: there is no hidden state")
        if self.trainable_theta and (self.learn_a or self.learn_b):
            raise ValueError("trainable_theta=true must be false with learn_a or learn_b: theta is a part of A and B")
        legendre.check_stable(self.order, self.theta, self.discretizer)

    @property
    def memory_dim(self) -> int:
        return self.order * self.memory_channels

    @property
    def output_dim(self) -> int:
        return self.memory_dim if self.hidden_cell == "none" else self.hidden_dim


class LMUState(NamedTuple):
    """The state between two frames: hidden (B, hidden_dim), memory (B, order * memory_channels), channel fastest, cell
    (B, hidden_dim) of an LSTM (else without features).
    """

    hidden: Tensor
    memory: Tensor
    cell: Tensor


class DropoutMasks(NamedTuple):
    """The factors of one sequence for all its frames, (B, features) each, or 1."""

    x: Tensor | float = 1.0
    hidden: Tensor | float = 1.0
    memory: Tensor | float = 1.0


class LMUCell(nn.Module):
    """The published LMU of one frame. A parameter that an option switches off is a buffer of zeros."""

    e_x: Tensor  # (channels, input_dim)
    e_h: Tensor  # (channels, hidden_dim)
    e_m: Tensor  # (channels, memory_dim)
    W_x: Tensor  # (hidden_dim, input_dim)
    W_h: Tensor  # (hidden_dim, hidden_dim)
    W_m: Tensor  # (hidden_dim, memory_dim)
    b_u: Tensor  # (channels,)
    b_h: Tensor  # (hidden_dim,)

    def __init__(self, config: LMUCellConfig) -> None:
        super().__init__()
        self.config = config
        inputs, hidden, channels, memory = (
            config.input_dim,
            config.hidden_dim,
            config.memory_channels,
            config.memory_dim,
        )
        is_tanh = config.hidden_cell == "tanh"
        self._matrix("e_x", channels, inputs, is_used=True)
        self._matrix("e_h", channels, hidden, is_used=config.hidden_to_memory)
        self._matrix("e_m", channels, memory, is_used=config.memory_to_memory)
        self._matrix("W_x", hidden, inputs, is_used=is_tanh and config.input_to_hidden)
        self._matrix("W_h", hidden, hidden, is_used=is_tanh)
        self._matrix("W_m", hidden, memory, is_used=is_tanh)
        self._matrix("b_u", channels, is_used=config.use_bias)
        self._matrix("b_h", hidden, is_used=is_tanh and config.use_bias)
        self.hidden_cell: nn.GRUCell | nn.LSTMCell | None = None
        if config.hidden_cell in ("gru", "lstm"):
            kind = nn.GRUCell if config.hidden_cell == "gru" else nn.LSTMCell
            self.hidden_cell = kind(memory + inputs * config.input_to_hidden, hidden)
        A, B = legendre.discrete_system(config.order, config.theta, discretizer=config.discretizer)
        self.A = nn.Parameter(A.float()) if config.learn_a else None
        self.B = nn.Parameter(B.float()) if config.learn_b else None
        self.log_theta = nn.Parameter(torch.tensor(math.log(config.theta))) if config.trainable_theta else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw e_x and e_h uniform as LeCun and W Xavier-normal; e_m and biases begin at 0."""
        for name, parameter in self.named_parameters(recurse=False):
            if name in ("e_x", "e_h"):
                bound = math.sqrt(3 / parameter.size(1))
                nn.init.uniform_(parameter, -bound, bound)
            elif name.startswith("W_"):
                nn.init.xavier_normal_(parameter)
            elif name in ("e_m", "b_u", "b_h"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, state: LMUState) -> LMUState:
        """Map x (B, input_dim) and the state before it to the state after it."""
        return self.step(x, state, system=self.system())

    def step(
        self, x: Tensor, state: LMUState, *, system: tuple[Tensor, Tensor], masks: DropoutMasks | None = None
    ) -> LMUState:
        """Compute the definition with A and B given (as of `system`), since they are the same for all frames."""
        A, B = system
        masks = masks or DropoutMasks()
        h, m = state.hidden, state.memory
        u = F.linear(x * masks.x, self.e_x) + F.linear(h * masks.hidden, self.e_h)
        u = u + F.linear(m * masks.memory, self.e_m) + self.b_u  # (B, channels)
        m = legendre.advance(m.unflatten(1, (self.config.order, -1)), u, A, B).flatten(1)
        if self.config.hidden_cell == "none":
            return LMUState(h, m, state.cell)
        if self.hidden_cell is None:
            h = torch.tanh(F.linear(x, self.W_x) + F.linear(h, self.W_h) + F.linear(m, self.W_m) + self.b_h)
            return LMUState(h, m, state.cell)
        inputs = torch.cat([m, x], dim=1) if self.config.input_to_hidden else m
        if isinstance(self.hidden_cell, nn.GRUCell):
            return LMUState(self.hidden_cell(inputs, h), m, state.cell)
        h, cell = self.hidden_cell(inputs, (h, state.cell))
        return LMUState(h, m, cell)

    def system(self) -> tuple[Tensor, Tensor]:
        """Return the discrete A (order, order) and B (order,) as they are now, in the type of the parameters."""
        config = self.config
        if self.log_theta is not None:
            theta = self.log_theta.double().exp()
            A, B = legendre.discrete_system(config.order, theta, discretizer=config.discretizer)
            return A.to(self.e_x.dtype), B.to(self.e_x.dtype)
        fixed = legendre.cached_kernel(
            "system", 0, config.order, config.theta, config.discretizer, self.e_x.device, self.e_x.dtype
        )
        return fixed[:, :-1] if self.A is None else self.A, fixed[:, -1] if self.B is None else self.B

    def initial_state(self, batch_size: int) -> LMUState:
        hidden = self.e_x.new_zeros(batch_size, self.config.hidden_dim)
        cell = hidden if self.config.hidden_cell == "lstm" else hidden[:, :0]
        return LMUState(hidden, self.e_x.new_zeros(batch_size, self.config.memory_dim), cell)

    def _matrix(self, name: str, *shape: int, is_used: bool) -> None:
        if is_used:
            self.register_parameter(name, nn.Parameter(torch.empty(*shape)))
        else:
            self.register_buffer(name, torch.zeros(*shape), persistent=False)


class LMU(nn.Module):
    """The published LMU over sequences."""

    def __init__(self, config: LMUCellConfig) -> None:
        super().__init__()
        self.cell = LMUCell(config)

    def forward(
        self, x: Tensor, state: LMUState | None = None, *, form: Literal["auto", "stepwise"] = "auto"
    ) -> tuple[Tensor, LMUState]:
        """Map x (B, T, input_dim) to outputs (B, T, output_dim) and the state after frame T.

        auto takes one GEMM a frame where the cell allows it; stepwise is the definition.
        """
        state = state or self.cell.initial_state(x.size(0))
        masks = self._draw_masks(state)
        config = self.cell.config
        if form == "stepwise" or config.hidden_cell != "tanh" or isinstance(masks.hidden, Tensor):
            return self._stepwise(x, state, masks)
        return self._fused(x, state, masks)

    def _stepwise(self, x: Tensor, state: LMUState, masks: DropoutMasks) -> tuple[Tensor, LMUState]:
        system, outputs = self.cell.system(), []
        for frame in x.unbind(1):
            state = self.cell.step(frame, state, system=system, masks=masks)
            outputs.append(state.memory if self.cell.config.hidden_cell == "none" else state.hidden)
        return torch.stack(outputs, dim=1), state

    def _fused(self, x: Tensor, state: LMUState, masks: DropoutMasks) -> tuple[Tensor, LMUState]:
        """Compute s_t = [tanh, identity](c_t + s_{t-1} K) for s = [h, m]; K and c come from one substitution."""
        cell, hidden_dim = self.cell, self.cell.config.hidden_dim
        with torch.autocast(x.device.type, enabled=False):  # rounding errors would add up over frames
            x = x.to(cell.e_x.dtype)
            A, B = cell.system()
            identity = torch.eye(cell.config.memory_channels, dtype=x.dtype, device=x.device)
            B_rows = torch.kron(B[None].contiguous(), identity)  # (channels, memory)
            K_m = torch.cat([cell.e_h.T @ B_rows, torch.kron(A.T.contiguous(), identity) + cell.e_m.T @ B_rows])
            K_h = K_m @ cell.W_m.T + torch.cat([cell.W_h.T, cell.W_h.new_zeros(cell.config.memory_dim, hidden_dim)])
            u = F.linear(x.transpose(0, 1) * masks.x, cell.e_x, cell.b_u)  # (T, B, channels)
            c_h = F.linear(x.transpose(0, 1), cell.W_x, cell.b_h) + u @ (B_rows @ cell.W_m.T)
            c = torch.cat([c_h, u @ B_rows], dim=2)  # (T, B, hidden + memory)
            start = torch.cat([state.hidden, state.memory], dim=1).to(x.dtype)
            states = fused_recurrence(c, torch.cat([K_h, K_m], dim=1), start, hidden_dim)
        hidden, memory = states.split([hidden_dim, cell.config.memory_dim], dim=2)
        return hidden.transpose(0, 1), LMUState(hidden[-1], memory[-1], state.cell)

    def _draw_masks(self, state: LMUState) -> DropoutMasks:
        config = self.cell.config
        masks = DropoutMasks()
        if not self.training:
            return masks
        if config.dropout:
            ones = state.memory.new_ones(state.memory.size(0), config.input_dim)
            masks = masks._replace(x=F.dropout(ones, config.dropout))
        if config.recurrent_dropout:
            hidden, memory = (F.dropout(torch.ones_like(s), config.recurrent_dropout) for s in state[:2])
            masks = masks._replace(hidden=hidden, memory=memory)
        return masks
