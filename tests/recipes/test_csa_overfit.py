"""Forty clips can be learned by heart: nothing between audio, text and the search is lost, or exchanged."""

import numpy as np
import pytest

from core.data.index import ManifestIndex, write_manifest
from core.rundir.exit_codes import ExitCode
from core.rundir.files import SCORES
from core.rundir.whole_files import read_json
from tests.recipes import csa_runs, runs

CLIPS, STEPS = 40, 60
DIRECTIONS = ("speech_to_text", "text_to_speech")
SPEECH = """\
    kind: hubert
    hubert:
      conv_layers: [[16, 10, 5], [16, 8, 8], [32, 8, 8]]
      dim: 48
      num_layers: 2
      num_heads: 2
      ffn_dim: 96
      position_kernel: 8
      position_groups: 2
      layer_drop: 0.0
"""
TEXT = """\
    kind: own
    dim: 48
    num_layers: 1
    num_heads: 2
    ffn_dim: 96
"""


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Of the clips that were trained on, whole, in batches of 20."""
    root = tmp_path_factory.mktemp("overfit")
    config = csa_runs.write_config(root / "corpus", speech=SPEECH, text=TEXT)
    index, cuts, texts = ManifestIndex.open(runs.DEMO / "english_train.jsonl"), [], set()
    for row in np.flatnonzero(index.durations_s < 2.2):
        cut = index.read(int(row))
        if cut.supervisions[0].text not in texts and len(cuts) < CLIPS:
            cuts.append(cut)
            texts.add(cut.supervisions[0].text)
    write_manifest(cuts, root / "clips.jsonl")
    data = [f"data.{split}={root}/clips.jsonl" for split in ("train", "valid", "test")]
    plan = ("plan.micro_batches_per_step=1", "plan.max_cuts=20", "plan.max_duration_s=44", "plan.max_cut_s=2.2")
    steps = (f"train.max_steps={STEPS}", "train.validate_every_steps=null", "checkpoint.every_steps=null")
    words = (*data, *plan, *steps, "data.crop=null", "plan.over_budget=error", "optim.lr=3e-3", "optim.weight_decay=0",
             "model.projection_dim=32", "gallery.matched=9", "parallel.strategy=ddp",
             *csa_runs.WITHOUT_CHANCE)  # fmt: skip
    codes, text = csa_runs.train(config, root, *words)
    assert codes == [ExitCode.DONE], text
    found: dict[str, float] = read_json(root / "tiny" / SCORES)
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_speech_finds_its_text_better_than_by_length_alone(direction: str, scores: dict[str, float]) -> None:
    assert scores["test/pairs"] == CLIPS
    low, by_length = scores[f"test/{direction}_r1_low"], scores[f"test/{direction}_length_only_r1"]
    assert low > by_length > scores["test/chance_r1"]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_among_clips_of_one_length_it_is_no_chance(direction: str, scores: dict[str, float]) -> None:
    assert scores["test/matched_chance_r1"] == pytest.approx(0.1)
    assert scores[f"test/matched_{direction}_r1_low"] > 0.1
