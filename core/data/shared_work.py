"""Pieces of work shared by the ranks of a job, and by any number of jobs that know nothing of each other.

    work = SharedWork(directory / ".claims", ranks=ranks, stops=stops, rng=rng)
    work.pieces("features", pieces, is_over=path.exists)     # each is made once, by whoever comes first
    work.by_one("codebook", fit, is_done=path.exists)        # by the ranks of one job together, while the others wait

Whoever makes a piece holds a lock on a byte of one file. The kernel gives it back when the process ends, however it
ends, so a kill costs the others nothing but the piece. The file system must have locks that hold between nodes, as NFS,
GPFS and Lustre (mounted with `flock`) have.
"""

import fcntl
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.distributed import Ranks

logger = logging.getLogger(__name__)

POLL_S = 5.0
LONG_S = 600.0  # a stop waits for the piece under way
_LOOKS = 100  # at pieces that are there, before the ranks tell each other

# Called by all ranks together after each piece, with the seconds it took; True to stop here.
Stops = Callable[[float], bool]


@dataclass(frozen=True)
class Piece:
    """`make` is called where `is_whole` says no; afterwards it says yes to everybody."""

    name: str
    is_whole: Callable[[], bool]
    make: Callable[[], None]


class Claims:
    """Locks by name, one byte of a file each, that processes on all nodes respect. One object in a process and file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    @contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Claim a piece until the block ends; False where another process holds it."""
        place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):  # as POSIX leaves open
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)


class SharedWork:
    """All ranks of a job call every method together."""

    def __init__(self, path: Path, *, ranks: Ranks, stops: Stops, rng: np.random.Generator) -> None:
        """Take the `path` of the file with the locks, and an `rng` that differs by job and rank: they begin apart."""
        self._claims = Claims(path)
        self._ranks, self._stops, self._rng = ranks, stops, rng
        self.num_made = 0  # pieces, by all ranks of this job

    def pieces(self, what: str, pieces: Sequence[Piece], *, is_over: Callable[[], bool]) -> bool:
        """Make all pieces that nobody else makes, and wait for the others; False when stopped in between.

        `is_over`: what they are needed for is there already, made by another job, and they may be gone.
        """
        order = self._rng.permutation(len(pieces)).tolist()
        left = set(order)
        num_made, making_s = 0, 0.0
        while left:
            began = time.monotonic()
            whole, made = self._one_of([pieces[number] for number in order if number in left], is_over)
            reports = self._ranks.gather((whole, made, is_over()))
            if any(over for _, _, over in reports):
                return True
            known = {name for names, _, _ in reports for name in names}
            left = {number for number in left if pieces[number].name not in known}
            round_s = time.monotonic() - began
            if all(not names for names, _, _ in reports):
                time.sleep(POLL_S)
            elif num := sum(one for _, one, _ in reports):
                num_made, making_s = num_made + num, making_s + round_s
                self.num_made += num
                left_s = making_s / num_made * len(left)
                logger.info("%s: %d of %d pieces, %.0f s left", what, len(pieces) - len(left), len(pieces), left_s)
                if round_s > LONG_S:
                    logger.warning("%s: a piece took %.0f s, and a stop waits for it: see shard_hours", what, round_s)
            if self._stops(round_s) and left:
                return False
        return True

    def by_one(self, name: str, make: Callable[[], None], *, is_done: Callable[[], bool]) -> bool:
        """Call `make` on all ranks of the job that comes first; return False when stopped while another is at it."""
        while True:
            with self._first_holds(name) as is_ours:
                is_there, is_ours = self._ranks.from_first((is_done(), is_ours) if self._ranks.is_first else None)
                if is_ours and not is_there:
                    make()
                if is_ours or is_there:
                    return True
            if self._stops(0.0):
                return False
            time.sleep(POLL_S)

    def _one_of(self, pieces: Sequence[Piece], is_over: Callable[[], bool]) -> tuple[list[str], int]:
        """Make the first that is missing and unclaimed: (names of those that are whole now, 1 if one was made)."""
        whole: list[str] = []
        for piece in pieces:
            with self._claims.held(piece.name) as is_ours:
                if not is_ours:
                    continue
                if not piece.is_whole():
                    if not is_over():  # asked now: what is over is cleared away afterwards
                        piece.make()
                        return [*whole, piece.name], 1
                    return whole, 0
            whole.append(piece.name)
            if len(whole) == _LOOKS:
                break
        return whole, 0

    @contextmanager
    def _first_holds(self, name: str) -> Iterator[bool]:
        if not self._ranks.is_first:
            yield False
            return
        with self._claims.held(name) as is_ours:
            yield is_ours
