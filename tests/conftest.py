"""What all tests share: one thread a process, because ranks are forked, and a forked OpenMP pool hangs."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import torch  # noqa: E402  (the variables are read when torch is loaded)

torch.set_num_threads(1)
