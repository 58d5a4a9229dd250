"""Seeds of links."""

import hashlib

from launchers.chain.submission import link_seed


def test_seed_is_the_published_function() -> None:
    by_hand = int(hashlib.sha256(b"baton link 7 3").hexdigest()[:8], 16)
    assert link_seed(7, 3) == by_hand
    assert link_seed("7", 3) == by_hand


def test_seeds_differ_by_run_and_link() -> None:
    seeds = {link_seed(base, link) for base in [*range(50), "demo", "other"] for link in range(1, 51)}
    assert len(seeds) == 52 * 50
    assert all(0 <= seed < 2**32 for seed in seeds)
