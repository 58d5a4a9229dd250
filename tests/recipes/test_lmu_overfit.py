"""Ten utterances can be learned by heart: nothing between audio and text is lost. And what a run writes on the way."""

from pathlib import Path

import pytest

from core.rundir.exit_codes import ExitCode
from core.rundir.files import PREDICTIONS, REPORT, SCORES
from core.rundir.whole_files import read_json, read_records
from tests.recipes import runs

CONFIG = runs.ROOT / "recipes" / "lmu_gigaspeech" / "overfit.yaml"
STEPS = [25, 50, 75, 100, 125, 150]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the committed overfit run, with its report."""
    root = tmp_path_factory.mktemp("overfit")
    job = runs.begin(CONFIG, root, "train.validate_every_steps=25", report=True)
    assert job.wait(timeout_s=240) == [ExitCode.DONE], job.text
    return root / "lmu_overfit"


def test_both_decodings_make_no_mistake(run: Path) -> None:
    scores = read_json(run / SCORES)
    assert scores["test/utterances"] == 10 and scores["test/words"] == 48
    for name in ("wer_greedy", "cer_greedy", "wer_ngram", "cer_ngram"):
        assert scores[f"test/{name}"] == 0, name


def test_predictions_say_at_which_step_they_were_made(run: Path) -> None:
    records = list(read_records(run / PREDICTIONS))
    shown = [(record["step"], record["sample_id"]) for record in records if record["split"] == "valid"]
    kept = sorted({name for _, name in shown})
    assert len(kept) == 3 and sorted(shown) == [(step, name) for step in STEPS for name in kept]
    test = [record for record in records if record["split"] == "test"]
    assert {record["step"] for record in test} == {150} and len(test) == 10
    assert all(record["hypothesis"] == record["reference"] == record["ngram"] for record in test)


def test_the_report_shows_how_a_prediction_came_about(run: Path) -> None:
    page = (run / REPORT).read_text(encoding="utf-8")
    assert "Predictions at step 150" in page
    history = page.split("over the steps</h2>")[1].split("</table>")[0]
    assert [step for step in STEPS if f'<td class="number">{step}</td>' in history] == STEPS
