"""A run with data.order=randomized: each link another order, two ranks different examples, no way back unasked."""

from pathlib import Path

import pytest

from core.rundir.checkpoints import list_complete
from core.rundir.environment import ENV_LINK_SEED
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CHECKPOINTS, SCORES
from core.rundir.whole_files import read_json
from manifests.shar import write_shar
from tests.recipes import runs


@pytest.fixture(scope="module")
def randomized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny configuration on a Shar directory of its training clips, with statistics of the corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    config = runs.write_config(folder)
    write_shar(folder / "train.jsonl", folder / "shar", shard_size=3)
    text = config.read_text(encoding="utf-8").replace(
        f"train: {folder}/train.jsonl", f"train: {folder}/shar\n  order: randomized\n  features:\n    normalize: corpus"
    )
    config.write_text(text, encoding="utf-8")
    return config


def position(runs_root: Path) -> dict:
    return read_json(list_complete(runs_root / "tiny" / CHECKPOINTS)[-1].directory / "state.json")["position"]


def test_two_links_of_two_ranks(randomized: Path, tmp_path: Path) -> None:
    first = {"num_ranks": 2, "env": {ENV_LINK_SEED: "11"}}
    codes, text = runs.link(randomized, tmp_path, "run.link_steps=3", **first)
    assert codes == [ExitCode.CONTINUE] * 2, text
    assert "a new order begins, of link seed 11 at step 0" in text
    assert position(tmp_path)["link_seed"] == 11
    codes, text = runs.link(randomized, tmp_path, "run.link_steps=3", num_ranks=2, env={ENV_LINK_SEED: "12"})
    assert codes == [ExitCode.DONE] * 2, text
    assert "a new order begins, of link seed 12 at step 3" in text
    assert (position(tmp_path)["link_seed"], position(tmp_path)["steps"]) == (12, 6)
    steps = runs.samples(tmp_path / "tiny")
    assert len(steps) == 6 and steps[:3] != steps[3:]
    for link in (steps[:3], steps[3:]):  # micro-batch 0 is of rank 0, 1 of rank 1
        zero, one = ({sample_id for step in link for sample_id in step[rank]} for rank in (0, 1))
        assert zero and one and zero.isdisjoint(one)
    assert all(loss > 0 for loss in runs.losses(tmp_path / "tiny"))
    assert read_json(tmp_path / "tiny" / SCORES)["test/utterances"] == 2


def test_alone_each_link_has_its_own_seed_and_the_order_is_switched_only_when_asked(
    randomized: Path, tmp_path: Path
) -> None:
    def link(*overrides: str) -> tuple[list[int | None], str]:
        return runs.link(randomized, tmp_path, "run.link_steps=1", *overrides)

    seeds = []
    for _ in range(2):
        codes, text = link()
        assert codes == [ExitCode.CONTINUE], text
        seeds.append(position(tmp_path)["link_seed"])
    assert len(set(seeds)) == 2
    exact = ("data.order=exact", f"data.train={randomized.parent}/train.jsonl")
    codes, text = link(*exact)
    assert codes == [ExitCode.CONFIG] and "data.order" in text, text
    codes, text = link(*exact, "run.accept_data=true")
    assert codes == [ExitCode.CONTINUE] and "segment 1 of the plan begins" in text, text
    codes, text = link("run.accept_data=true")
    assert codes == [ExitCode.CONTINUE] and "a new order begins" in text, text
    assert position(tmp_path)["plan"]["segment"] == 1
