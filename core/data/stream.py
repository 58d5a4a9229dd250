"""The steps of a run as batches: the plan's micro-batches of this rank, read ahead by workers, in the plan's order.

The plan runs ahead of training in the loader; where the run stands is told by the steps that come out, never by the
loader, so a resume starts exactly where the last finished step ended.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from core.config import section
from core.data.batch import Batch
from core.data.dataset import SpeechDataset
from core.distributed import Ranks
from core.samplers.plan import Draw, EvaluationPlan, Plan, Position, rank_micro_batches
from core.train.stop import ignore_signals


@section
class LoaderConfig:
    """`num_workers` processes a rank read ahead `prefetch` micro-batches each; 0 reads in the training process."""

    num_workers: int = 2
    prefetch: int = 4
