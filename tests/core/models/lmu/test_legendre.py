"""The Legendre delay against scipy and against what it is for: remembering a signal."""

import numpy as np
import pytest
import scipy.signal
import scipy.special
import torch

from core.models.lmu import legendre

pytestmark = pytest.mark.numerics

SIZES = [(4, 16.0), (32, 100.0), (192, 1000.0)]


def continuous_by_loops(order: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """A and B, entry by entry from the formula of the paper."""
    A, B = np.zeros((order, order)), np.zeros((order, 1))
    for i in range(order):
        B[i, 0] = (2 * i + 1) / theta * (-1) ** i
        for j in range(order):
            A[i, j] = (2 * i + 1) / theta * (-1 if i < j else (-1) ** (i - j + 1))
    return A, B


@pytest.mark.parametrize("order, theta", SIZES)
def test_zero_order_hold_equals_scipy(order: int, theta: float) -> None:
    A, B = continuous_by_loops(order, theta)
    reference = scipy.signal.cont2discrete((A, B, np.eye(order), np.zeros((order, 1))), dt=1.0, method="zoh")
    ours_A, ours_B = legendre.discrete_system(order, theta, discretizer="zoh")
    assert np.abs(ours_A.numpy() - reference[0]).max() <= 1e-12
    assert np.abs(ours_B.numpy() - reference[1][:, 0]).max() <= 1e-12


@pytest.mark.parametrize("order, theta", SIZES)
def test_euler_equals_scipy(order: int, theta: float) -> None:
    A, B = continuous_by_loops(order, theta)
    reference = scipy.signal.cont2discrete((A, B, np.eye(order), np.zeros((order, 1))), dt=1.0, method="euler")
    ours_A, ours_B = legendre.discrete_system(order, theta, discretizer="euler")
    assert np.abs(ours_A.numpy() - reference[0]).max() <= 1e-12
    assert np.abs(ours_B.numpy() - reference[1][:, 0]).max() <= 1e-12


def test_powers_and_impulse_response_equal_repeated_products() -> None:
    A, B = legendre.discrete_system(6, 10.0, discretizer="zoh")
    powers = legendre.powers(A, count=21)
    response = legendre.impulse_response(A, B, length=21)
    for k in range(21):
        torch.testing.assert_close(powers[k], torch.linalg.matrix_power(A, k + 1), rtol=0, atol=1e-14)
        torch.testing.assert_close(response[k], torch.linalg.matrix_power(A, k) @ B, rtol=0, atol=1e-14)


def test_delay_decoder_is_the_shifted_legendre_polynomials() -> None:
    for ratio in (0.0, 0.3, 1.0):
        reference = [scipy.special.eval_sh_legendre(i, ratio) for i in range(12)]
        np.testing.assert_allclose(legendre.delay_decoder(12, ratio).numpy(), reference, atol=1e-13)
    assert legendre.delay_decoder(1, 0.3).tolist() == [1.0]


def read_out_error(order: int, theta: float, *, ratio: float, half_step: float) -> float:
    """Error of u(t - ratio * theta + half_step) read from the memory of 8 sinusoids, relative to their power."""
    rng = np.random.default_rng(0)
    frequencies, phases = rng.uniform(0, 0.05, 8), rng.uniform(0, 2 * np.pi, 8)

    def signal(t: np.ndarray) -> np.ndarray:
        return np.sin(2 * np.pi * frequencies * t[:, None] + phases).sum(axis=1)

    time = np.arange(int(4 * theta), dtype=np.float64)
    A, B = (x.numpy() for x in legendre.discrete_system(order, theta, discretizer="zoh"))
    decoder = legendre.delay_decoder(order, ratio).numpy()
    state, decoded = np.zeros(order), np.zeros_like(time)
    for t, u in enumerate(signal(time)):
        state = A @ state + B * u
        decoded[t] = decoder @ state
    settled = time >= 2 * theta
    expected = signal(time - ratio * theta + half_step)[settled]
    return float(np.sqrt(np.mean((decoded[settled] - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("order, theta", SIZES[1:])
def test_memory_reads_out_the_past(order: int, theta: float) -> None:
    for ratio in (0.5, 1.0):
        assert read_out_error(order, theta, ratio=ratio, half_step=0.5) <= 0.005
        assert read_out_error(order, theta, ratio=ratio, half_step=0.0) > 0.04  # the hold delays by half a step
    assert read_out_error(order, theta, ratio=0.0, half_step=0.0) <= 0.03  # at the edge nothing newer is known


def test_an_unstable_or_impossible_memory_is_refused() -> None:
    legendre.check_stable(192, 1000.0, "zoh")
    legendre.check_stable(4, 1000.0, "euler")
    with pytest.raises(ValueError, match="discretizer=euler is unstable at order=192, theta=1000"):
        legendre.check_stable(192, 1000.0, "euler")
    with pytest.raises(ValueError, match="order=0"):
        legendre.check_stable(0, 10.0, "zoh")


def test_kernels_made_in_inference_mode_serve_training_later() -> None:
    def response_of(length: int) -> torch.Tensor:
        return legendre.cached_kernel("response", length, 5, 13.5, "zoh", torch.device("cpu"), torch.float32)

    with torch.inference_mode():
        response_of(10)
    response = response_of(10)
    weight = torch.ones(5, requires_grad=True)
    (response @ weight).sum().backward()
    assert weight.grad is not None


def test_the_cached_response_is_grown_by_doubling_and_shared() -> None:
    def response(length: int) -> torch.Tensor:
        return legendre.cached_kernel("response", length, 5, 14.5, "zoh", torch.device("cpu"), torch.float32)

    assert response(65) is response(128)
    assert response(64).size(0) == 64
    torch.testing.assert_close(response(65)[:64], response(64), rtol=0, atol=0)
