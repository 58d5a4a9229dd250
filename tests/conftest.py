"""What all tests share: one thread a process, because ranks are forked, and a forked OpenMP pool hangs."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import pytest
import torch  # the variables are read when it is loaded

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write the golden text of each .sub file anew")
