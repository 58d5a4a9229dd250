"""Ten utterances learned by heart, and what evaluate finds in them, against a decoder of its own."""

from itertools import groupby
from pathlib import Path

import jiwer
import pytest
import soundfile
import torch

from core.config.load import load
from core.data.index import ManifestIndex
from core.models.hubert.model import HubertCTC
from core.rundir.exit_codes import ExitCode
from core.rundir.files import PREDICTIONS, SCORES
from core.rundir.whole_files import read_json, read_records, write_json
from core.text.vocabulary import CharacterVocabulary
from recipes.hubert_iter2 import evaluate
from recipes.hubert_iter2.finetune_assembly import Config
from tests.recipes import finetune_runs, runs

OVERFIT = runs.DEMO / "english_overfit.jsonl"
FROM_SCRATCH = ("pretrained=null", "optim.thaw=null", "optim.freeze.patterns=[]")
# No regularization, and a model that is large enough.
BY_HEART = ("data.time_mask=null", "data.channel_mask=null", "model.dropout=0", "model.attention_dropout=0",
            "model.projection_dropout=0", "model.layer_drop=0", "model.feature_grad_scale=1.0", "model.dim=64",
            "model.num_heads=4", "model.ffn_dim=128", "model.conv_layers=[[32,10,5],[48,8,8],[64,8,8]]",
            "plan.micro_batches_per_step=1", "plan.max_duration_s=60", "plan.max_cuts=10", "plan.num_buckets=1",
            "optim.lr=4e-3", "optim.max_norm=5.0", "optim.weight_decay=0", "optim.schedule.warmup_steps=20",
            "optim.schedule.hold_steps=80", "optim.schedule.decay_steps=100", "train.max_steps=200",
            "train.validate_every_steps=null", "train.log_every_steps=20", "checkpoint.every_steps=null")  # fmt: skip


@pytest.fixture(scope="module")
def settings() -> list[str]:
    return [*FROM_SCRATCH, *BY_HEART, "run.name=by_heart", *(f"data.{split}={OVERFIT}" for split in ("train", "test"))]


@pytest.fixture(scope="module")
def root(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("by_heart")
    job = runs.begin(finetune_runs.write_config(root / "corpus"), root, *settings, recipe=finetune_runs.finetune_recipe)
    assert job.wait(timeout_s=600) == [ExitCode.DONE], job.text
    return root


@pytest.fixture(autouse=True)
def _runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_RUNS", str(root))


def test_both_decodings_make_no_mistake(root: Path) -> None:
    scores = read_json(root / "by_heart" / SCORES)
    assert scores["english_overfit/utterances"] == 10 and scores["english_overfit/words"] == 48
    for name in ("wer_greedy", "cer_greedy", "wer_ngram", "cer_ngram"):
        assert scores[f"english_overfit/{name}"] == 0, name


def test_greedy_and_its_word_error_rate_are_those_of_another_decoder(
    root: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Clip by clip, unpadded, on sentences that were never heard; WER by jiwer."""
    config, dev = root / "corpus" / "finetune.yaml", root / "corpus" / "dev.jsonl"
    before = read_json(root / "by_heart" / SCORES)
    assert evaluate.main(["--config", str(config), *settings, f"data.test={dev}"]) == 0
    scores = read_json(root / "by_heart" / SCORES)
    assert f"{'dev/wer_greedy':40} {scores['dev/wer_greedy']:.4f}" in capsys.readouterr().out
    assert scores["step"] == 200 and before.items() <= scores.items(), "those of the other manifest stay"

    found = load(Config, config, settings)
    vocabulary = CharacterVocabulary.load(root / "by_heart" / "vocabulary.txt")
    model = HubertCTC(found.model, vocab_size=len(vocabulary)).eval()
    state = {k.removeprefix("/model."): v for k, v in runs.state(root / "by_heart").items() if k.startswith("/model.")}
    model.load_state_dict(state)
    recorded = {r["sample_id"]: r for r in read_records(root / "by_heart" / PREDICTIONS) if r["split"] == "dev"}
    index, heard, said = ManifestIndex.open(dev), [], []
    for row in range(len(index)):
        cut = index.read(row)
        samples, _ = soundfile.read(cut.recording.sources[0].source, dtype="float32")
        with torch.no_grad():
            logits = model(torch.from_numpy(samples)[None], torch.tensor([len(samples)])).logits[0]
        path = [symbol for symbol, _ in groupby(logits.argmax(-1).tolist()) if symbol != 0]
        heard.append("".join(vocabulary.symbols[symbol - 1] for symbol in path))
        said.append(recorded[cut.id]["reference"])
        assert recorded[cut.id]["hypothesis"] == heard[-1] != ""
    assert scores["dev/wer_greedy"] == pytest.approx(jiwer.wer(said, heard))
    assert scores["dev/cer_greedy"] == pytest.approx(jiwer.cer(said, heard))


def test_scores_of_another_step_are_not_kept(root: Path, settings: list[str]) -> None:
    path = root / "by_heart" / SCORES
    write_json(path, {"old/wer_greedy": 0.5, "step": 100})
    assert evaluate.main(["--config", str(root / "corpus" / "finetune.yaml"), *settings]) == 0
    scores = read_json(path)
    assert "old/wer_greedy" not in scores and scores["english_overfit/wer_greedy"] == 0


def test_a_model_of_another_size_is_said(root: Path, settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--config", str(root / "corpus" / "finetune.yaml"), *settings, "model.ffn_dim=64"])
    assert stopped.value.code == ExitCode.STORAGE
    assert "does not fit" in capsys.readouterr().err
