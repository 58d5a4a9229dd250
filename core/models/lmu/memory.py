"""The memory of an LMU over whole sequences: one linear recurrence in several equal forms, chosen by cost.

m_t = A m_{t-1} + B u_t for each of `channels` inputs, with A (order, order), B (order,) of the Legendre delay. Forms:

    recurrent   the definition, step by step
    fft         convolution with the impulse response B, A B, A^2 B, ... (Chilkuri & Eliasmith 2021, arXiv:2102.11417)
    chunked     GEMMs: within a chunk a Toeplitz matrix of the impulse response, and powers of A that carry the state of
                the chunk before; needs no FFT, so it runs in bf16, and from any state, so it streams

Layout: u (B, T, channels), state (B, order, channels), memory (B, T, order * channels) with the channel fastest.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.lmu import legendre
from core.models.lmu.legendre import Discretizer

Form = Literal["auto", "fft", "chunked", "recurrent"]


class LegendreMemory(nn.Module):
    """The linear memory; without parameters unless `trainable_theta`."""

    def __init__(
        self, *, order: int, theta: float, discretizer: Discretizer = "zoh", trainable_theta: bool = False
    ) -> None:
        super().__init__()
        legendre.check_stable(order, theta, discretizer)
        self.order, self.theta, self.discretizer = order, theta, discretizer
        self.log_theta = nn.Parameter(torch.tensor(math.log(theta))) if trainable_theta else None

    def forward(self, u: Tensor, *, form: Form = "auto") -> Tensor:
        """Map u (B, T, channels) to memory (B, T, order * channels), from a state of zeros."""
        return self.unrolled(u, form=form)[:, : u.size(1)]

    def unrolled(self, u: Tensor, *, form: Form = "auto") -> Tensor:
        """Return what forward gives, perhaps with more frames, to be cut off later: that saves a copy."""
        if form == "auto":
            batch, num_frames, channels = u.shape
            form = cheapest_form(
                num_frames, batch=batch, order=self.order, channels=channels, device_type=u.device.type
            )
        if form == "fft":
            return self._fft(u)
        if form == "chunked":
            return self._chunked(u, None)
        return self._recurrent(u)

    def stream(self, u: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map the next T >= 1 frames (B, T, channels) after `state` (None: silence) to memory and state."""
        memory = self._chunked(u, state)[:, : u.size(1)]
        return memory, memory[:, -1].unflatten(-1, (self.order, u.size(2)))

    def step(self, u: Tensor, state: Tensor) -> Tensor:
        """Return the state after frame u (B, channels) and `state` (B, order, channels), in float32 at least."""
        system = self._kernel("system", 0, u)
        return legendre.advance(state, u, system[:, :-1], system[:, -1])

    def _recurrent(self, u: Tensor) -> Tensor:
        system = self._kernel("system", 0, u)
        state, states = u.new_zeros(u.size(0), self.order, u.size(2)), []
        for frame in u.unbind(1):
            state = legendre.advance(state, frame, system[:, :-1], system[:, -1])
            states.append(state.flatten(1))
        return torch.stack(states, dim=1).to(u.dtype)

    def _fft(self, u: Tensor) -> Tensor:
        num_frames = u.size(1)
        size = fft_size(2 * num_frames - 1)
        with torch.autocast(u.device.type, enabled=False):
            response = self._kernel("response", num_frames, u)[:num_frames]  # (T, order)
            H = torch.fft.rfft(response.T, n=size)  # (order, size / 2 + 1)
            U = torch.fft.rfft(u.to(response.dtype).transpose(1, 2), n=size)  # (B, channels, size / 2 + 1)
            memory = torch.fft.irfft(U[:, None] * H[:, None], n=size)[..., :num_frames]  # (B, order, channels, T)
        return memory.flatten(1, 2).transpose(1, 2).to(u.dtype)

    def _chunked(self, u: Tensor, state: Tensor | None) -> Tensor:
        batch, num_frames, channels = u.shape
        size = chunk_size(num_frames, order=self.order)
        num_chunks = -(-num_frames // size)
        kernel = self._kernel("chunk", size, u)  # (size * order, order + size)
        chunks = F.pad(u, (0, 0, 0, num_chunks * size - num_frames)).view(batch, num_chunks, size, channels)
        if num_chunks == 1 and state is None:
            kernel = kernel[:, self.order :]
        else:
            chunks = torch.cat([self._chunk_starts(chunks, state, kernel).to(u.dtype), chunks], dim=2)
        kernel, columns = kernel.to(u.dtype), chunks.flatten(0, 1)  # columns (B * chunks, order + size, channels)
        if channels >= _MIN_CHANNELS_FOR_BATCHED_GEMM:
            memory = torch.bmm(kernel.expand(columns.size(0), -1, -1), columns)
        else:
            rows = columns.transpose(1, 2).flatten(0, 1)  # (B * chunks * channels, order + size)
            memory = F.linear(rows, kernel).unflatten(0, (-1, channels)).transpose(1, 2)
        return memory.reshape(batch, num_chunks * size, self.order * channels)

    def _chunk_starts(self, chunks: Tensor, state: Tensor | None, kernel: Tensor) -> Tensor:
        """Return the state before each chunk, (B, chunks, order, channels), in float32 at least: errors add up.

        A prefix scan in log2(chunks) rounds: after the round of distance d, a state knows 2 d chunks of its past.
        """
        with torch.autocast(chunks.device.type, enabled=False):
            decay, response = kernel[-self.order :].split([self.order, kernel.size(1) - self.order], dim=1)
            rows = chunks[:, :-1].to(kernel.dtype).transpose(2, 3)  # (B, chunks - 1, channels, size)
            ends = F.linear(rows.flatten(0, 2), response).unflatten(0, rows.shape[:3])  # what each chunk alone leaves
            start = ends.new_zeros(chunks.size(0), chunks.size(3), self.order)
            if state is not None:
                start = state.to(kernel.dtype).transpose(1, 2)
            states = torch.cat([start[:, None], ends], dim=1)  # (B, chunks, channels, order)
            distance = 1
            while distance < states.size(1):
                past = states[:, :-distance]
                carried = F.linear(past.flatten(0, 2), decay).unflatten(0, past.shape[:3])
                states = torch.cat([states[:, :distance], states[:, distance:] + carried], dim=1)
                distance, decay = 2 * distance, decay @ decay
            return states.transpose(2, 3)

    def _kernel(self, name: legendre.KernelName, size: int, u: Tensor) -> Tensor:
        """Return a constant of the system in at least float32; computed anew only where theta is trained."""
        dtype = torch.promote_types(u.dtype, torch.float32)
        if self.log_theta is None:
            return legendre.cached_kernel(name, size, self.order, self.theta, self.discretizer, u.device, dtype)
        theta = self.log_theta.double().exp()
        return legendre.kernel(name, size, order=self.order, theta=theta, discretizer=self.discretizer).to(dtype)


_MIN_CHANNELS_FOR_BATCHED_GEMM = 12  # a batched GEMM with fewer columns waits for memory


def chunk_size(num_frames: int, *, order: int) -> int:
    """Return the frames of a chunk: about 32 (64 for long sequences and high orders); the last is nearly full."""
    target = 32 if order <= 32 and num_frames <= 512 else 64
    num_chunks = max(1, round(num_frames / target))
    grain = 1 if order <= 32 else 8  # kernels of high order are large: few different ones
    return -(-num_frames // (num_chunks * grain)) * grain


def fft_size(minimum: int) -> int:
    """Return the smallest 2^k, 5 * 2^k or 3 * 2^k that is at least `minimum`."""
    power = 1 << max(2, (minimum - 1).bit_length())
    return min(n for n in (power * 5 // 8, power * 3 // 4, power) if n >= minimum and n % 2 == 0)


def cheapest_form(num_frames: int, *, batch: int, order: int, channels: int, device_type: str) -> Form:
    """Return the faster of fft and chunked, forwards and backwards with the projection after them.

    On CPU from `tests/bench/lmu.py`: the FFT needs fewer operations, but moves the memory of all frames more often,
    which counts once it leaves the cache; and a single chunk has no state to carry. On CUDA tensor cores decide.
    """
    if device_type != "cpu" or (num_frames <= 32 and order <= 64):
        return "chunked"
    return "chunked" if batch * num_frames * channels >= 40 * max(order, 32) else "fft"
