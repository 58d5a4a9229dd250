"""Numbers that add up: (numerator, denominator) sums over micro-batches, steps and ranks, without waiting for a device.

Losses, error counts, rates and shares are all ratios of two sums, so the mean over ranks is the ratio of the totals:
the seconds of audio a second are (audio of all ranks) / (wall seconds), padding is (padded - useful) / padded.

    sums.add(output.metrics); sums.add(step_metrics(...))      # every micro-batch, every step; no sync
    names = merged_names(ranks.gather(sums.names()))           # when a record is due, on all ranks
    totals = sums.as_tensor(names)                             # one all-reduce
    record = ratios(names, totals)
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

Amount = Tensor | float


class MetricSums:
    """Sums by name since the last `clear`, on the device where their terms were made."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Amount, Amount]] = {}

    def add(self, metrics: Mapping[str, tuple[Amount, Amount]]) -> None:
        """Add (numerator, denominator) pairs; tensors are scalars, and stay on their device."""
        for name, (numerator, denominator) in metrics.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + _detached(numerator), before[1] + _detached(denominator))

    def names(self) -> list[str]:
        """Return what this rank has counted; a rank that saw no data may lack some of it."""
        return list(self._sums)

    def as_tensor(self, names: Sequence[str], *, device: torch.device | str = "cpu") -> Tensor:
        """Return (2 N,) float64: numerator and denominator of each of `names`; 0 and 0 for what this rank lacks.

        The only place where the host waits for the device.
        """
        amounts = [amount for name in names for amount in self._sums.get(name, (0.0, 0.0))]
        tensors = [amount for amount in amounts if isinstance(amount, Tensor)]
        together = torch.stack([tensor.to(tensors[0].device) for tensor in tensors]) if tensors else torch.empty(0)
        fetched = iter(together.tolist())  # one copy to the host for all of them
        values = [next(fetched) if isinstance(amount, Tensor) else float(amount) for amount in amounts]
        return torch.tensor(values, dtype=torch.float64, device=device)

    def pairs(self) -> Mapping[str, tuple[Amount, Amount]]:
        """Return the sums themselves, to add to others."""
        return dict(self._sums)

    def clear(self) -> None:
        self._sums.clear()


def merged_names(names_of_ranks: Iterable[Iterable[str]]) -> list[str]:
    """Return the names that any rank has, sorted: the same list on every rank."""
    return sorted(set().union(*names_of_ranks))


def ratios(names: Sequence[str], totals: Tensor) -> dict[str, float | None]:
    """Return numerator / denominator by name, of a reduced `as_tensor`; None where nothing was counted."""
    pairs = totals.reshape(len(names), 2).tolist()
    return {
        name: numerator / denominator if denominator else None
        for name, (numerator, denominator) in zip(names, pairs, strict=True)
    }


def step_metrics(
    *,
    step_s: float,
    data_wait_s: float,
    length: float,
    padded_length: float,
    num_targets: float,
    dp_size: int,
    unit: str = "s",
    tp_size: int = 1,
    model_flops: float | None = None,
    padded_flops: float = 0.0,
    peak_flops: float | None = None,
) -> dict[str, tuple[Amount, Amount]]:
    """Return how fast one step was, as pairs to add.

    `step_s`: wall seconds of the step, without validation and checkpoints. The rest is what this dp rank did in it;
    only one rank of a tp group adds. `length`, with and without padding, counts in `unit` and gives a rate by its name:
    `tokens_per_s`; of seconds, which are of audio, `audio_s_per_s`. `model_flops` counts useful frames, `padded_flops`
    all. `peak_flops`: a device's; where it is not known, there is no MFU, and the record says null.
    """
    shared_s = step_s / dp_size  # added up over dp ranks it is the wall time again
    metrics: dict[str, tuple[Amount, Amount]] = {
        ("audio_s_per_s" if unit == "s" else f"{unit}_per_s"): (length, shared_s),
        "targets_per_s": (num_targets, shared_s),
        "data_wait_share": (data_wait_s, step_s),
        "padding_share": (padded_length - length, padded_length),
    }
    if model_flops is not None:
        for name, flops in (("", model_flops), ("padded_", padded_flops)):
            metrics[f"{name}tflops_per_device"] = (flops / 1e12, step_s * tp_size)
            metrics[f"{name}mfu"] = (flops, step_s * tp_size * (peak_flops or 0.0))
    return metrics


def _detached(amount: Amount) -> Amount:
    return amount.detach().double() if isinstance(amount, Tensor) else amount
