"""The demo notebook runs from its first cell to its last, without a trained run, and shows what it says."""

import re
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.recipes import runs

NOTEBOOK = runs.ROOT / "recipes" / "lmu_gigaspeech" / "demo.ipynb"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The executed code cells by their ids; started in the folder of the notebook, as Jupyter does."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATON_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
        client.execute()
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def _printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def _num_pictures(cell: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_pictures_are_shown(cells: dict[str, Any]) -> None:
    pictures = {name: _num_pictures(cell) for name, cell in cells.items()}
    assert {name for name, num in pictures.items() if num} == {"clip", "loudness"}


def test_the_past_is_read_back(cells: dict[str, Any]) -> None:
    errors = [float(one) for one in re.findall(r"error ([\d.]+) %", _printed(cells["memory"]))]
    assert len(errors) == 2 and max(errors) <= 0.5


def test_text_of_known_and_of_new_speech(cells: dict[str, Any]) -> None:
    known, new = _printed(cells["text"]).split("never heard")
    assert "WER greedy 0 %, WER beam 0 %" in known
    assert known.count("  said  ") == 3 and new.count("  said  ") == 5
    assert re.search(r"WER greedy \d+ %, WER beam \d+ %", new)


def test_nothing_is_written_to_stderr(cells: dict[str, Any]) -> None:
    streams = [output for cell in cells.values() for output in cell.outputs if output.output_type == "stream"]
    assert [output.text for output in streams if output.name == "stderr"] == []


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None), cell.id
