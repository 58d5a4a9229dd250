"""All forms of the memory equal the step-by-step definition, forwards, backwards and from any state."""

import numpy as np
import pytest
import torch
from torch import Tensor

from core.models.lmu import legendre
from core.models.lmu.memory import Form, LegendreMemory, cheapest_form, chunk_size, fft_size
from tests.closeness import assert_close

pytestmark = pytest.mark.numerics

LENGTHS = [1, 7, 64, 257, 1000]
FORMS: list[Form] = ["fft", "chunked", "recurrent", "auto"]


def remember(u: np.ndarray, *, order: int, theta: float) -> np.ndarray:
    """u (B, T, channels) -> m (B, T, order, channels), frame by frame in numpy."""
    A, B = (x.numpy() for x in legendre.discrete_system(order, theta, discretizer="zoh"))
    memory = np.zeros((*u.shape[:2], order, u.shape[2]))
    state = np.zeros((u.shape[0], order, u.shape[2]))
    for t in range(u.shape[1]):
        state = np.einsum("ij,bjc->bic", A, state) + B[None, :, None] * u[:, t, None, :]
        memory[:, t] = state
    return memory


def signal(num_frames: int, channels: int, *, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(num_frames * 100 + channels)
    return torch.randn(batch, num_frames, channels, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("channels", [1, 4, 16])
@pytest.mark.parametrize("num_frames", LENGTHS)
def test_forms_equal_the_definition(num_frames: int, channels: int) -> None:
    memory = LegendreMemory(order=8, theta=30.0)
    u = signal(num_frames, channels)
    expected = torch.from_numpy(remember(u.numpy(), order=8, theta=30.0)).flatten(2)
    for form in FORMS:
        assert (memory(u, form=form) - expected).abs().max() <= 1e-10
        in_float32 = memory(u.float(), form=form)
        assert in_float32.dtype == torch.float32
        assert in_float32.shape == expected.shape
        assert (in_float32 - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("num_frames", [64, 257, 1000])
def test_forms_equal_the_definition_at_the_published_size(num_frames: int) -> None:
    memory = LegendreMemory(order=192, theta=1000.0)
    u = signal(num_frames, 1)
    expected = torch.from_numpy(remember(u.numpy(), order=192, theta=1000.0)).flatten(2)
    for form in FORMS:
        assert (memory(u, form=form) - expected).abs().max() <= 1e-10
        assert (memory(u.float(), form=form) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("channels", [1, 4, 16])
@pytest.mark.parametrize("num_frames", [1, 7, 64, 257])
def test_gradients_equal_those_of_the_definition(num_frames: int, channels: int) -> None:
    memory = LegendreMemory(order=8, theta=30.0, trainable_theta=True).double()
    u = signal(num_frames, channels).requires_grad_()
    weight = signal(num_frames, 8 * channels)
    assert memory.log_theta is not None

    wanted = [u, memory.log_theta]

    def gradients(form: Form) -> tuple[Tensor, ...]:
        return torch.autograd.grad((memory(u, form=form) * weight).sum(), wanted)

    expected = gradients("recurrent")
    for form in ("fft", "chunked"):
        for ours, reference in zip(gradients(form), expected, strict=True):
            assert (ours - reference).abs().max() <= 1e-8 * max(1.0, float(reference.abs().max()))


def test_gradient_of_theta_equals_a_finite_difference() -> None:
    u, weight = signal(40, 2), signal(40, 12)

    def loss(log_theta: float) -> float:
        return float((LegendreMemory(order=6, theta=float(np.exp(log_theta)))(u) * weight).sum())

    memory = LegendreMemory(order=6, theta=25.0, trainable_theta=True).double()
    assert memory.log_theta is not None
    (memory(u) * weight).sum().backward()
    assert memory.log_theta.grad is not None
    at, step = memory.log_theta.item(), 1e-5
    numeric = (loss(at + step) - loss(at - step)) / (2 * step)
    assert abs(float(memory.log_theta.grad) - numeric) <= 1e-6 * abs(numeric)


@pytest.mark.parametrize("channels", [2, 16])
def test_streaming_in_chunks_and_steps_equals_the_whole(channels: int) -> None:
    memory = LegendreMemory(order=8, theta=30.0)
    u = signal(200, channels)
    whole = memory(u)
    rng, state, parts, start = np.random.default_rng(0), None, [], 0
    while start < 200:
        stop = start + int(rng.integers(1, 90))
        part, state = memory.stream(u[:, start:stop], state)
        parts.append(part)
        start = stop
    assert_close(torch.cat(parts, dim=1), whole, rel=1e-12)
    state = torch.zeros(2, 8, channels, dtype=torch.float64)
    for t in range(200):
        state = memory.step(u[:, t], state)
        assert_close(state.flatten(1), whole[:, t], rel=1e-12, of=whole)


def test_chunked_runs_in_bfloat16_and_the_others_in_float32_under_autocast() -> None:
    memory = LegendreMemory(order=8, theta=30.0)
    u = signal(300, 16).float()
    expected = memory(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked, fft, recurrent = (memory(u, form=form) for form in ("chunked", "fft", "recurrent"))
    assert chunked.dtype == torch.bfloat16
    assert (chunked.float() - expected).norm() <= 0.01 * expected.norm()
    for other in (fft, recurrent):
        assert (other - expected).norm() <= 1e-5 * expected.norm()
    for form in FORMS:
        in_bfloat16 = memory(u.bfloat16(), form=form)
        assert in_bfloat16.dtype == torch.bfloat16
        assert (in_bfloat16.float() - expected).norm() <= 0.02 * expected.norm()


def test_memory_keeps_nothing_that_ddp_would_broadcast() -> None:
    memory = LegendreMemory(order=8, theta=30.0)
    memory(signal(50, 2))
    assert not list(memory.buffers())
    assert not memory.state_dict()


def test_chunks_are_nearly_full_and_ffts_hardly_longer_than_needed() -> None:
    for order in (16, 192):
        for num_frames in range(1, 1700, 13):
            size = chunk_size(num_frames, order=order)
            num_chunks = -(-num_frames // size)
            assert num_chunks * size - num_frames < num_chunks * (1 if order == 16 else 8)
            assert size <= 96
    for minimum in range(1, 3000):
        size = fft_size(minimum)
        assert minimum <= size <= max(4, minimum * 4 / 3)
        assert size % 2 == 0


def test_much_memory_and_single_chunks_go_by_gemm() -> None:
    def form(batch: int, num_frames: int, order: int, channels: int, device_type: str = "cpu") -> Form:
        return cheapest_form(num_frames, batch=batch, order=order, channels=channels, device_type=device_type)

    assert form(8, 1600, 192, 1) == "chunked"
    assert form(8, 400, 192, 1) == "fft"
    assert form(8, 400, 192, 1, "cuda") == "chunked"
    assert form(16, 100, 16, 32) == "chunked"
    assert form(1, 100, 16, 1) == "fft"
    assert form(1, 20, 16, 1) == "chunked"
