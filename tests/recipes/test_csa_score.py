"""What a trained model finds in the held-out clips: the same on any number of ranks, and told in full."""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.config.load import load
from core.distributed import Ranks
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CONFIG, NEIGHBOURS, REPORT, SCORES, SIMILARITIES
from core.rundir.whole_files import read_json, read_records
from core.text.normalization import normalize_transcript
from core.train.trained import load_trained
from recipes.csa_stage1 import score
from recipes.csa_stage1.assembly import Config, build_model, open_corpus
from recipes.csa_stage1.retrieval import gallery_loss
from tests.ranks import run_on_ranks
from tests.recipes import csa_runs, runs

DIRECTIONS = ("speech_to_text", "text_to_speech")
OF_PLACES = ("r1", "r5", "r10", "mrr", "median_rank", "mean_rank", "r1_low", "r1_high", "length_only_r1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps on DeepSpeed, with its report."""
    root = tmp_path_factory.mktemp("root")
    config = csa_runs.write_config(root / "corpus")
    words = ("parallel.strategy=deepspeed", "train.max_steps=2", "train.validate_every_steps=2")
    codes, text = csa_runs.train(config, root, *words, report=True)
    assert codes == [ExitCode.DONE], text
    return root / "tiny"


def test_scores_stand_beside_their_baselines(run: Path) -> None:
    scores = read_json(run / SCORES)
    galleries = [f"test/{matched}{direction}" for matched in ("", "matched_") for direction in DIRECTIONS]
    expected = {f"{gallery}_{name}" for gallery in galleries for name in OF_PLACES}
    assert scores.keys() == expected | {"test/pairs", "test/texts", "test/chance_r1", "test/matched_chance_r1", "step"}
    cuts = runs.demo_cuts("test", csa_runs.NUM_TEST)
    texts = {normalize_transcript(cut.supervisions[0].text, language="en") for cut in cuts}
    assert (scores["test/pairs"], scores["test/texts"]) == (csa_runs.NUM_TEST, len(texts))
    assert len(texts) < csa_runs.NUM_TEST, "two say the same"
    assert scores["test/matched_chance_r1"] == pytest.approx(1 / 6)
    for gallery in galleries:
        found = {name: scores[f"{gallery}_{name}"] for name in OF_PLACES}
        assert found["r1_low"] <= found["r1"] <= found["r1_high"]
        assert 0 <= found["r1"] <= found["r5"] <= found["r10"] <= 1 <= found["median_rank"]


def test_the_report_shows_neighbours_and_similarities(run: Path) -> None:
    page = (run / REPORT).read_text(encoding="utf-8")
    assert (run / SIMILARITIES).stat().st_size > 10_000
    assert '<img alt="each utterance against each text"' in page
    records = list(read_records(run / NEIGHBOURS))
    (gallery,) = run_on_ranks(_gallery, 1, run)
    cosines = gallery.speech @ gallery.text.T
    for direction, similarities in zip(DIRECTIONS, (cosines, cosines.T), strict=True):
        of_direction = [record for record in records if record["direction"] == direction]
        assert len(of_direction) == 4 and all(record["step"] == 2 for record in of_direction)
        table = page.split(f"Nearest neighbours, {direction.replace('_', ' ')}</h2>")[1].split("</table>")[0]
        assert table.count("<tr>") == 5
        for record in of_direction:
            row = gallery.sample_ids.index(record["sample_id"])
            assert record["text"] == gallery.texts[row] and record["cosine"] == pytest.approx(similarities[row, row])
            found = record["neighbours"]
            places = [gallery.sample_ids.index(one["sample_id"]) for one in found]
            assert len(set(places)) == 3 and [one["text"] for one in found] == [
                gallery.texts[place] for place in places
            ]
            expected = np.sort(similarities[row])[::-1][:3]
            assert [one["cosine"] for one in found] == pytest.approx(expected, abs=1e-6)
            assert similarities[row][places] == pytest.approx(expected, abs=1e-6)
            assert all(f"{one['cosine']:.3f} {escape(one['text'])}" in table for one in found)


def test_a_run_is_scored_afterwards_with_the_same_result(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATON_RUNS", str(run.parent))
    assert score.main(["--config", str(run / CONFIG)]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("test/"))
    scores = read_json(run / SCORES)
    assert printed == {name: f"{value:.4f}" for name, value in scores.items() if name != "step"}


def test_the_evaluation_is_the_same_on_any_number_of_ranks(run: Path) -> None:
    (expected,) = run_on_ranks(_evaluate, 1, run)
    scores = {name: value for name, value in read_json(run / SCORES).items() if name != "step"}
    assert expected["test"] == pytest.approx(scores, rel=1e-7)
    assert expected["valid_loss"] == pytest.approx(csa_runs.validations(run)[-1]["valid_loss"], rel=1e-7)
    for num_ranks in (2, 4):
        for found in run_on_ranks(_evaluate, num_ranks, run):
            assert found["test"] == pytest.approx(expected["test"], rel=1e-7)
            assert found["valid_loss"] == pytest.approx(expected["valid_loss"], rel=1e-7)


def _gallery(ranks: Ranks, run: Path) -> score.Gallery:
    config = load(Config, run / CONFIG)
    corpus = open_corpus(config, run, ranks=ranks)
    model = build_model(config, corpus, None)
    load_trained(model, run, ranks=ranks)
    found = score.collect(score.batches_of(config, corpus, "test", ranks=ranks), model, None, ranks=ranks)
    assert found is not None
    return found


def _evaluate(ranks: Ranks, run: Path) -> dict[str, Any]:
    config = load(Config, run / CONFIG)
    corpus = open_corpus(config, run, ranks=ranks)
    model = build_model(config, corpus, None)
    load_trained(model, run, ranks=ranks)
    valid, test = (
        score.collect(score.batches_of(config, corpus, split, ranks=ranks), model, None, ranks=ranks)  # type: ignore[arg-type]
        for split in ("valid", "test")
    )
    assert valid is not None and test is not None
    loss = gallery_loss(valid.speech, valid.text, scale=valid.scale, keys=valid.keys)
    return {"valid_loss": loss, "test": score.summarize(test, corpus, config)}
