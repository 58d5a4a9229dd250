"""The seed of every link, derived from the run's: the same run launched again gets the same seeds."""

import hashlib


def link_seed(base: int | str, link: int) -> int:
    """Return 32 bits that follow from the run's seed (or its name, where the recipe keeps its default) and the link."""
    digest = hashlib.sha256(f"baton link {base} {link}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
