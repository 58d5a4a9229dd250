"""How close two results are, by the scale of what is compared: rounding grows with the numbers, and sums mix them."""

from typing import Any

import numpy as np
from torch import Tensor


def assert_close(found: Any, expected: Any, *, rel: float = 1e-5, of: Any = None, name: object = "") -> None:
    """Hold the largest difference of two arrays to a share of the largest element of `of` (default: of `expected`).

    `rel`: 1e-10 in float64, 1e-5 in fp32, 0.05 in bf16, or what a test knows better. NaN is close to nothing.
    """
    ours, theirs, scale = (_array(one) for one in (found, expected, expected if of is None else of))
    assert ours.shape == theirs.shape, name
    if theirs.size:
        error, largest = float(np.abs(ours - theirs).max()), float(np.abs(scale).max())
        assert error <= rel * largest, f"{name} off by {error:.3g}, more than {rel:g} of {largest:.3g}"


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=np.float64)
