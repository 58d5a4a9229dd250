"""A growing log, printed as it grows."""

import codecs
import sys
from pathlib import Path


class LogTail:
    """A reader that prints what a growing log gets, whole lines at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""

    def pump(self, *, last: bool = False) -> None:
        """Print the whole lines that are new; with `last` the unfinished one as well."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
            self._offset += len(fresh)
            self._rest += self._decoder.decode(fresh)
        lines, newline, self._rest = self._rest.rpartition("\n")
        text = lines + newline + (self._rest if last else "")
        if last:
            self._rest = ""
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
