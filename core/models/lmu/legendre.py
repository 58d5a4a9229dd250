"""The Legendre delay: the linear system whose state is the recent past of a signal in Legendre polynomials.

    dm/dt = A m + B u,    u(t - r theta) ~ sum_i P_i(2 r - 1) m_i(t)    for 0 <= r <= 1

Voelker, Kajic, Eliasmith (2019), Legendre Memory Units, NeurIPS. Everything is float64, and differentiable by theta.
"""

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Discretizer = Literal["zoh", "euler"]


def continuous_system(order: int, *, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return A (order, order), B (order,) of the delay of length theta = 1; for another, both are divided by theta.

    A[i, j] = (2i + 1) (-1 if i < j else (-1)^(i-j+1)),  B[i] = (2i + 1) (-1)^i
    """
    i = torch.arange(order, device=device)[:, None]
    j = torch.arange(order, device=device)[None, :]
    odd = (2 * i + 1).double()
    sign_is_negative = (i < j) | ((i - j) % 2 == 0)
    A = torch.where(sign_is_negative, -odd, odd)  # (order, order)
    B = torch.where(i % 2 == 0, odd, -odd)[:, 0]  # (order,)
    return A, B


def discretize(A: Tensor, B: Tensor, *, discretizer: Discretizer) -> tuple[Tensor, Tensor]:
    """Return the system for steps of 1: by zero-order hold, exp([[A, B], [0, 0]]), or by Euler's rule, (I + A, B)."""
    order = B.numel()
    if discretizer == "euler":
        return torch.eye(order, dtype=A.dtype, device=A.device) + A, B
    rows = torch.cat([A, B[:, None]], dim=1)  # (order, order + 1)
    transition = torch.linalg.matrix_exp(torch.cat([rows, rows.new_zeros(1, order + 1)]))
    return transition[:order, :order], transition[:order, order]


def discrete_system(order: int, theta: float | Tensor, *, discretizer: Discretizer) -> tuple[Tensor, Tensor]:
    """Return A (order, order) and B (order,) of m_t = A m_{t-1} + B u_t for a window of theta steps."""
    device = theta.device if isinstance(theta, Tensor) else None
    A, B = continuous_system(order, device=device)
    return discretize(A / theta, B / theta, discretizer=discretizer)


def advance(state: Tensor, u: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Return A m + B u for m = `state` (B, order, channels) and u (B, channels), in the type of A: errors add up."""
    batch, order, channels = state.shape
    with torch.autocast(A.device.type, enabled=False):
        rows = state.to(A.dtype).transpose(1, 2).reshape(batch * channels, order)  # one GEMM, not one a sequence
        return F.linear(rows, A).view(batch, channels, order).transpose(1, 2) + B[:, None] * u.to(A.dtype)[:, None]


def powers(A: Tensor, *, count: int) -> Tensor:
    """Return A^1 ... A^count as (count, order, order), by doubling."""
    result = A[None]
    while result.size(0) < count:
        result = torch.cat([result, result @ result[-1]])
    return result[:count]


def impulse_response(A: Tensor, B: Tensor, *, length: int) -> Tensor:
    """Return B, A B, ..., A^(length-1) B as (length, order), by doubling."""
    response, step = B[None], A
    while response.size(0) < length:
        response = torch.cat([response, response @ step.T])
        step = step @ step
    return response[:length]


def delay_decoder(order: int, ratio: float) -> Tensor:
    """Return weights (order,) that read u(t - ratio * theta) from the state: shifted Legendre P_i(2 ratio - 1).

    Zero-order hold counts half a step: of a sampled signal the read-out is u(t - ratio * theta + 1/2), at the edge
    ratio = 0 it is u(t).
    """
    x = 2 * ratio - 1
    values = [1.0, x]
    for i in range(1, order - 1):
        values.append(((2 * i + 1) * x * values[i] - i * values[i - 1]) / (i + 1))
    return torch.tensor(values[:order], dtype=torch.float64)


KernelName = Literal["system", "response", "chunk"]


def kernel(name: KernelName, size: int, *, order: int, theta: float | Tensor, discretizer: Discretizer) -> Tensor:
    """Return a constant that the forms of the memory need, in float64.

    system     [A, B] (order, order + 1)
    response   B, A B, ... (size, order)
    chunk      (size * order, order + size): row (t, i) gives m_i(t) from the state before the chunk and its inputs
    """
    A, B = discrete_system(order, theta, discretizer=discretizer)
    if name == "system":
        return torch.cat([A, B[:, None]], dim=1)
    response = impulse_response(A, B, length=size)
    if name == "response":
        return response
    frame = torch.arange(size, device=A.device)
    delay = frame[:, None] - frame[None, :]  # (t, s)
    toeplitz = torch.where((delay >= 0)[..., None], response[delay.clamp(min=0)], 0.0)  # (t, s, order)
    return torch.cat([powers(A, count=size), toeplitz.transpose(1, 2)], dim=2).flatten(0, 1)


def cached_kernel(
    name: KernelName,
    size: int,
    order: int,
    theta: float,
    discretizer: Discretizer,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return `kernel` for a fixed theta, computed once for all layers of a process; the response grows by doubling."""
    if name == "response":
        size = 1 << max(6, (size - 1).bit_length())
    return _cached(name, size, order, theta, discretizer, device, dtype)


def check_stable(order: int, theta: float, discretizer: Discretizer) -> None:
    """Refuse a memory that would not fade."""
    if order < 1 or theta < 1:
        raise ValueError(f"order={order} and theta={theta} must be at least 1")
    if discretizer == "euler":
        A, _ = discrete_system(order, theta, discretizer=discretizer)
        if torch.linalg.eigvals(A).abs().max() > 1:
            raise ValueError(
                f"discretizer=euler is unstable at order={order}, theta={theta}; use zoh or a larger theta"
            )


@functools.lru_cache(maxsize=128)
def _cached(
    name: KernelName,
    size: int,
    order: int,
    theta: float,
    discretizer: Discretizer,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not serve training later
        return kernel(name, size, order=order, theta=theta, discretizer=discretizer).to(device=device, dtype=dtype)
