"""Memory and utilization as they are, not as asked."""

import pytest
import torch

from core.job.hardware import hardware_metrics


def test_peak_memory_of_this_process_grows_with_it() -> None:
    before = hardware_metrics(torch.device("cpu"))["peak_memory_gib"]
    ballast = torch.ones(2**28 // 4)  # 0.25 GiB
    after = hardware_metrics(torch.device("cpu"))["peak_memory_gib"]
    assert 0.05 < before < 64 and after >= before
    assert after > 0.25 and ballast.numel()


@pytest.mark.gpu
def test_gpu_memory_is_seen() -> None:
    device = torch.device("cuda", 0)
    ballast = torch.ones(2**28, device=device)  # 1 GiB
    found = hardware_metrics(device)
    assert found["peak_memory_gib"] >= 1.0 and found["gpu_memory_gib"] >= 1.0 and 0 <= found["gpu_utilization"] <= 1
    assert ballast.numel()
