"""Keyed permutations: the i-th row of a shuffled source, without shuffling the source.

Endless passes over `num_rows` rows are numbered through: draw i is place i % num_rows of epoch i // num_rows, and
each epoch is a permutation of its own, a function of (key, epoch). Any stretch of draws costs its own length, wherever
it lies and however many rows there are, and needs no memory of the draws before.

Everything here is integer arithmetic, so the order is the same on every machine and with every version of numpy.
"""

import numpy as np

_FEW_ROWS = 4096  # below, an epoch is sorted by hashes; a Feistel network of so few bits would be a poor shuffle
_MAX_ROWS = 2**32
_ROUNDS = 4
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(values: np.ndarray) -> np.ndarray:
    """Apply the finalizer of splitmix64 (Steele et al., 2014): a bijection of uint64 that looks random."""
    mixed = values.astype(np.uint64) + _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def hashes(num: int, *, key: int) -> np.ndarray:
    """Return `num` different uint64 numbers that look random: sorting by them is a keyed shuffle."""
    start = np.array([key], np.uint64) + np.arange(num, dtype=np.uint64) * _GOLDEN
    return mix64(start)


def endless_passes(first: int, num: int, *, num_rows: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Return draws first .. first + num - 1 of endless passes over num_rows rows: (epochs, rows), int64 and uint32."""
    if not 1 <= num_rows <= _MAX_ROWS:
        raise ValueError(f"a source must have 1 to {_MAX_ROWS:,} rows, not {num_rows:,}; split it in two sources")
    epochs = np.arange(first // num_rows, -(-(first + num) // num_rows))
    begins = np.maximum(epochs * num_rows, first) - epochs * num_rows  # the places of each epoch that are drawn
    ends = np.minimum((epochs + 1) * num_rows, first + num) - epochs * num_rows
    if num_rows < _FEW_ROWS:
        rows = _sorted_epochs(epochs, num_rows=num_rows, key=key).ravel()[first % num_rows :][:num]
    else:
        parts = [np.empty(0, np.uint32)]
        for epoch, begin, end in zip(epochs.tolist(), begins.tolist(), ends.tolist(), strict=True):
            places = np.arange(begin, end, dtype=np.uint32)
            parts.append(permute(places, num_rows=num_rows, key=_epoch_key(key, epoch)))
        rows = np.concatenate(parts)
    return np.repeat(epochs, ends - begins), rows.astype(np.uint32, copy=False)


def permute(index: np.ndarray, *, num_rows: int, key: int) -> np.ndarray:
    """Return where a keyed bijection of 0 .. num_rows-1 sends each index, as uint32.

    A Feistel network (Luby and Rackoff, 1988) over the least power of two, and what falls outside is sent through it
    again until it falls inside (cycle walking; Black and Rogaway, 2002): less than two passes on average.
    """
    bits = max(2, (num_rows - 1).bit_length())
    round_keys = hashes(_ROUNDS, key=key).astype(np.uint32)
    last = np.uint32(num_rows - 1)
    rows = _feistel(index.astype(np.uint32), bits=bits, round_keys=round_keys)
    outside = np.flatnonzero(rows > last)
    while len(outside):
        again = _feistel(rows[outside], bits=bits, round_keys=round_keys)
        rows[outside] = again
        outside = outside[again > last]
    return rows


def _feistel(values: np.ndarray, *, bits: int, round_keys: np.ndarray) -> np.ndarray:
    """Apply a bijection of 0 .. 2**bits-1, as uint32: each half in turn is changed by a hash of the other."""
    low_bits = (bits + 1) // 2
    low_mask, high_mask = np.uint32(2**low_bits - 1), np.uint32(2 ** (bits - low_bits) - 1)
    high = values >> np.uint32(low_bits)
    low = values & low_mask
    for number, round_key in enumerate(round_keys):
        if number % 2:
            high ^= _hash32(low, round_key) & high_mask
        else:
            low ^= _hash32(high, round_key) & low_mask
    return (high << np.uint32(low_bits)) | low


def _hash32(values: np.ndarray, round_key: np.uint32) -> np.ndarray:
    """Return a uint32 hash whose low 16 bits look random."""
    mixed = values * np.uint32(0x9E3779B1)
    mixed ^= round_key
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x85EBCA6B)
    return mixed >> np.uint32(16)


def _epoch_key(key: int, epoch: int) -> int:
    return int(mix64(np.array([key], np.uint64) ^ mix64(np.array([epoch])))[0])


def _sorted_epochs(epochs: np.ndarray, *, num_rows: int, key: int) -> np.ndarray:
    """Return the permutations of some epochs of few rows: (epochs, num_rows)."""
    epoch_keys = mix64(np.array([key], np.uint64) ^ mix64(epochs))  # (epochs,)
    rows = np.arange(num_rows, dtype=np.uint64) * _GOLDEN  # (num_rows,)
    return mix64(epoch_keys[:, None] + rows[None, :]).argsort(axis=1, kind="stable")
