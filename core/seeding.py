"""Randomness as a function of (seed, stream, position): never of what a generator did before.

`stream` names the use ("plan.edges", "mask", "micro_batch"...), `position` is the place in it (epoch, cut, step...).
The same call gives the same numbers in any process, on any rank, after any resume; and two calls that differ in
anything give independent numbers.
"""

import hashlib
import json
import random
from operator import index

import numpy as np


def seed_sequence(seed: int, stream: str, *position: int) -> np.random.SeedSequence:
    """Return the numpy seed of one place in one stream.

    The arguments are hashed as one text, because `SeedSequence` itself takes [1] and [1, 0] for the same seed.
    """
    place = json.dumps([index(seed), stream, *map(index, position)])
    digest = hashlib.blake2b(place.encode(), digest_size=16).digest()
    return np.random.SeedSequence(int.from_bytes(digest, "little"))


def generator(seed: int, stream: str, *position: int) -> np.random.Generator:
    """Return a numpy generator (Philox) for one place in one stream."""
    return np.random.Generator(np.random.Philox(seed_sequence(seed, stream, *position)))


def key64(seed: int, stream: str, *position: int) -> int:
    """Return a 64-bit key for one place in one stream, 0 <= key < 2**64."""
    return int(seed_sequence(seed, stream, *position).generate_state(1, np.uint64)[0])


def seed_everything(seed: int, stream: str, *position: int) -> None:
    """Seed torch (CPU and every CUDA device), numpy and `random` for one place in one stream, each differently."""
    import torch  # here, so that planning and preparation processes need not load it

    words = seed_sequence(seed, stream, *position).generate_state(4, np.uint64)
    torch.manual_seed(int(words[0]))  # also seeds CUDA, at its initialization if that is still to come
    np.random.seed(words[1:3].view(np.uint32))
    random.seed(int(words[3]))
