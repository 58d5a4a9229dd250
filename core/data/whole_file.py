"""Binary files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def appears_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the name `path` when the block ends well, and is removed when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of `path`. Only while no other process is writing it."""
    for temporary in path.parent.glob(f".{path.name}.*-*"):
        temporary.unlink(missing_ok=True)
