"""Records appended to a JSONL file survive a writer that was killed in the middle of a line."""

from pathlib import Path

import pytest

from core.rundir.whole_files import append_record, read_records


@pytest.mark.parametrize(
    "before, kept",
    [
        ("", []),
        ('{"step": 1}\n', [{"step": 1}]),
        ('{"step": 1}\n{"st', [{"step": 1}]),  # torn inside the line
        ('{"step": 1}', [{"step": 1}]),  # torn just before the newline
        ('{"text": "\u00e9', []),
    ],
)
def test_a_record_after_a_torn_line_is_kept(tmp_path: Path, before: str, kept: list) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(before, encoding="utf-8")
    append_record(path, {"step": 2})
    append_record(path, {"step": 3})
    assert list(read_records(path)) == [*kept, {"step": 2}, {"step": 3}]
    assert path.read_text(encoding="utf-8").endswith('\n{"step": 3}\n')


def test_whole_lines_get_no_empty_line_between_them(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for step in range(3):
        append_record(path, {"step": step})
    assert path.read_text(encoding="utf-8") == "".join(f'{{"step": {step}}}\n' for step in range(3))
