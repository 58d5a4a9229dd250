"""One who reads only folder names finds what is asked for most, and few files of core serve one other file alone."""

from collections.abc import Callable
from typing import Any

import pytest

from core.recognition.decoding import beam_search
from core.rundir.lease import find_holder
from core.rundir.ledger import read_links
from core.samplers.plan import Plan
from core.train.loop import fit
from core.units.kmeans import fit_kmeans
from tests.structure import ROOT, imported_once

MOST_IMPORTED_ONCE = 24


@pytest.mark.parametrize(("question", "folder", "answer"), [
    ("the loop", "train", fit),
    ("the plan", "samplers", Plan),
    ("who is alive", "rundir", find_holder),
    ("k-means", "units", fit_kmeans),
    ("beam search", "recognition", beam_search),
    ("the ledger", "rundir", read_links),
])  # fmt: skip
def test_a_question_leads_to_one_folder(question: str, folder: str, answer: Callable[..., Any]) -> None:
    assert answer.__module__.split(".")[:2] == ["core", folder]
    page = (ROOT / "core" / "README.md").read_text(encoding="utf-8")
    rooms = [line.split("|")[2].strip() for line in page.splitlines() if line.startswith("| ") and question in line]
    assert f"`{folder}/`" in rooms and len([room for room in rooms if room.endswith("/`")]) == 1


def test_few_files_serve_one_other_alone() -> None:
    once = imported_once(ROOT)
    assert len(once) <= MOST_IMPORTED_ONCE, once
