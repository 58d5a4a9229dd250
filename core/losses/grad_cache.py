"""A contrastive loss of a batch larger than memory, exactly (Gao et al. 2021, arXiv:2101.06983).

    def encode(rows: slice) -> PairEmbeddings:
        return model(batch.audio[rows], batch.num_samples[rows], text_features=features[rows])

    loss = partial(contrastive_loss, text_keys=batch.text_keys, num_targets=batch.num_targets, group=group)
    return grad_cache_loss(encode, loss, num_rows=len(batch.audio), chunk_rows=64, group=group)     # for the loop

The batch is encoded chunk by chunk without activations, the loss gives the gradient of every embedding, and then each
chunk is encoded again, with the same random numbers, and sent backward with its part of that gradient. Memory is the
activations of one chunk and the embeddings of all; the time is one forward more.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from core.losses.contrastive import PairEmbeddings
from core.losses.gathering import count_rows
from core.losses.output import LossOutput

Encode = Callable[[slice], PairEmbeddings]


def grad_cache_loss(
    encode: Encode,
    loss: Callable[[PairEmbeddings], LossOutput],
    *,
    num_rows: int,
    chunk_rows: int,
    group: dist.ProcessGroup | None,
) -> list[Callable[[], LossOutput]]:
    """Return the parts of a loss over `num_rows` rows, each to be called and sent backward before the next.

    Their sums add up to the loss: the first has its value and its metrics, the others are 0; together their gradients
    are the loss's. `encode` must treat each row by itself (no batch statistics). All ranks of `group` encode equally
    often, as sharded models need it: a rank with fewer rows repeats its last chunk with a weight of 0.
    """
    chunks = [slice(first, min(first + chunk_rows, num_rows)) for first in range(0, num_rows, chunk_rows)]
    num_repeats = max(count_rows(len(chunks), group)) - len(chunks)
    with torch.no_grad():
        encoded = [_Encoded(encode, rows) for rows in chunks + chunks[-1:] * num_repeats]
    leaves = _leaves([chunk.embeddings for chunk in encoded[: len(chunks)]])
    output = loss(leaves)
    gradients = torch.autograd.grad(output.loss_sum, [leaf for leaf in leaves if leaf is not None])
    d_speech, d_text, *d_scalars = gradients
    parts: list[Callable[[], LossOutput]] = []
    for number, chunk in enumerate(encoded):
        weight = float(number < len(chunks))
        of_rows = [d_speech[chunk.rows] * weight, d_text[chunk.rows] * weight]
        of_scalars = [gradient * float(number == 0) for gradient in d_scalars]
        value = LossOutput(output.loss_sum.detach() * float(number == 0), output.metrics if number == 0 else {})
        parts.append(partial(_part, chunk, of_rows + of_scalars, value))
    return parts


class _Encoded:
    """A chunk's embeddings, and the random numbers that they were made with."""

    def __init__(self, encode: Encode, rows: slice) -> None:
        self._encode, self.rows = encode, rows
        self._state = _random_state()
        self.embeddings = encode(rows)

    def again(self) -> PairEmbeddings:
        """Encode the chunk once more, with gradients and the same random numbers; those of others are not disturbed."""
        now = _random_state()
        _set_random_state(self._state)
        try:
            return self._encode(self.rows)
        finally:
            _set_random_state(now)


def _part(chunk: _Encoded, gradients: list[Tensor], value: LossOutput) -> LossOutput:
    """Return `value` with the gradient of the chunk's embeddings: even 0 reaches each parameter, as engines expect."""
    embeddings = [tensor for tensor in chunk.again() if tensor is not None]
    products = [(x * gradient).sum() for x, gradient in zip(embeddings, gradients, strict=True)]
    total = torch.stack(products).sum()
    return LossOutput(value.loss_sum + (total - total.detach()), value.metrics)


def _leaves(chunks: list[PairEmbeddings]) -> PairEmbeddings:
    """Return the embeddings of all chunks as leaves of a graph of their own."""
    _, _, log_scale, bias = chunks[0]
    return PairEmbeddings(
        torch.cat([chunk.speech for chunk in chunks]).requires_grad_(),
        torch.cat([chunk.text for chunk in chunks]).requires_grad_(),
        log_scale.detach().clone().requires_grad_(),
        None if bias is None else bias.detach().clone().requires_grad_(),
    )


def _random_state() -> tuple[Any, ...]:
    on_device = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), on_device, np.random.get_state(), random.getstate()


def _set_random_state(state: tuple[Any, ...]) -> None:
    on_cpu, on_device, of_numpy, of_python = state
    torch.set_rng_state(on_cpu)
    if on_device is not None:
        torch.cuda.set_rng_state(on_device)
    np.random.set_state(of_numpy)
    random.setstate(of_python)
