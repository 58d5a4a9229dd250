"""What a run begins with: the encoders of other runs and directories, and clear words for what does not fit."""

import shutil
from pathlib import Path

import pytest
import torch

from core.data.index import write_manifest
from core.rundir.exit_codes import ExitCode
from core.rundir.files import BAD_SAMPLES, RUN_CONTEXT
from core.rundir.whole_files import read_json, read_records
from tests.recipes import csa_runs, finetune_runs, runs

BARELY = ("optim.lr=1e-30", "train.max_steps=1", "train.validate_every_steps=null", "parallel.strategy=ddp")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs to begin with: `recognizer` of lmu_gigaspeech, `tiny1` of hubert_iter1."""
    root = tmp_path_factory.mktemp("root")
    words = ("run.name=recognizer", "train.max_steps=1", "data.features.normalize=corpus")
    codes, text = runs.link(runs.write_config(root / "speech"), root, *words)
    assert codes == [ExitCode.DONE], text
    finetune_runs.pretrain(root / "hubert", root)
    return root


@pytest.fixture(scope="module")
def lmu(root: Path) -> Path:
    return csa_runs.write_config(root / "lmu", speech=csa_runs.LMU, pairs="    normalize: false\n")


@pytest.fixture(scope="module")
def hubert(root: Path) -> Path:
    """As `tiny1` is, but for its head and for what regularizes."""
    return csa_runs.write_config(root / "csa_hubert")


def test_the_speech_side_begins_with_a_recognizer(lmu: Path, root: Path) -> None:
    codes, text = csa_runs.train(lmu, root, *BARELY, "run.name=of_lmu", "pretrained.run=recognizer")
    assert codes == [ExitCode.DONE], text
    _assert_taken(root / "of_lmu", root / "recognizer", "speech_encoder.encoder.", "encoder.")
    state = runs.state(root / "of_lmu")
    stats = read_json(root / "recognizer" / "feature_stats.json")
    assert torch.equal(state["/model.speech_encoder.mean"], torch.tensor(stats["mean"]))


def test_the_speech_side_begins_with_a_hubert_and_needs_it_once(hubert: Path, root: Path) -> None:
    words = (*BARELY, "run.name=of_hubert", f"pretrained.run={root}/moved", "train.max_steps=2", "run.link_steps=1")
    (root / "tiny1").rename(root / "moved")
    codes, text = csa_runs.train(hubert, root, *words)
    assert codes == [ExitCode.CONTINUE], text
    _assert_taken(root / "of_hubert", root / "moved", "speech_encoder.model.", "hubert.")
    (root / "moved").rename(root / "tiny1")
    codes, text = csa_runs.train(hubert, root, *words)
    assert codes == [ExitCode.DONE], text


def test_all_begins_with_a_checkpoint_of_the_predecessor(directories: Path, tmp_path: Path) -> None:
    """On two ranks; its text encoder is the frozen one's own, and the second link does not need it any more."""
    state = predecessor(directories / "wav2vec2")
    (tmp_path / "iter_10").mkdir()
    torch.save({"module": state}, tmp_path / "iter_10" / "mp_rank_00_model_states.pt")
    words = ("optim.lr=1e-30", "train.max_steps=2", "run.link_steps=1", "parallel.strategy=deepspeed")
    words = (*words, "train.validate_every_steps=null", "model.projection_dim=null", f"predecessor={tmp_path}/iter_10")
    config = directories / "corpus" / "csa.yaml"
    codes, text = csa_runs.train(config, tmp_path, *words, num_ranks=2)
    assert codes == [ExitCode.CONTINUE] * 2 and "0 stay as they are: none" in text, text
    own = runs.state(tmp_path / "tiny")
    for theirs, tensor in state.items():
        name = theirs.replace(".speech_model.", ".model.").replace("speech_encoder.flat.", "speech_pooling.")
        if not name.endswith("masked_spec_embed"):
            found = own[f"/model.{ {'logit_scale': 'log_scale'}.get(name, name) }"]
            assert torch.equal(found, tensor.reshape(found.shape)), theirs
    shutil.rmtree(tmp_path / "iter_10")
    codes, text = csa_runs.train(config, tmp_path, *words, num_ranks=2)
    assert codes == [ExitCode.DONE] * 2, text


def predecessor(speech: Path) -> dict[str, torch.Tensor]:
    """Tensors under the predecessor's names, none of which is what a model begins with."""
    from transformers import Wav2Vec2Model

    encoder = Wav2Vec2Model.from_pretrained(speech).state_dict()
    sizes = {f"speech_encoder.speech_model.{name}": tensor.shape for name, tensor in encoder.items()}
    for name, (rows, columns) in {"mlp.fc.linear": (8, 16), "mlp.linear": (1, 8), "linear_merge": (16, 16)}.items():
        sizes |= {f"speech_encoder.flat.{name}.weight": torch.Size([rows, columns])}
        sizes |= {f"speech_encoder.flat.{name}.bias": torch.Size([rows])}
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(size, generator=generator) for name, size in [*sizes.items(), ("logit_scale", ())]}


def _assert_taken(run: Path, other: Path, ours: str, theirs: str) -> None:
    here, there = runs.state(run), runs.state(other)
    taken = [name for name in there if name.startswith(f"/model.{theirs}")]
    assert len(taken) > 10
    for name in taken:
        assert torch.equal(here[name.replace(f"/model.{theirs}", f"/model.{ours}")], there[name]), name


@pytest.mark.parametrize(
    ("kind", "settings", "problem"),
    [
        ("lmu", ["recognizer", "model.speech.encoder.dim=32"], "model.speech.encoder.dim: 16 there, 32 here"),
        ("lmu", ["recognizer", "model.speech.features.normalize=utterance"], "model.speech.features.normalize: corpus"),
        ("lmu", ["recognizer", "pretrained.checkpoint=0123"], "pretrained.checkpoint=0123: the newest weights of"),
        ("lmu", ["tiny1"], "pretrained.run=tiny1 is no run of lmu_gigaspeech"),
        ("lmu", ["nowhere"], "pretrained.run=nowhere is no run of lmu_gigaspeech"),
        ("hubert", ["recognizer"], "pretrained.run=recognizer is no run of hubert_iter1 or hubert_iter2"),
        ("hubert", ["tiny1", "model.speech.hubert.num_layers=3"], "model.speech.hubert.num_layers: 2 there, 3 here"),
        ("hubert", ["labels1"], "labels1 has no complete checkpoint"),
    ],
)
def test_another_run_is_refused(
    kind: str, settings: list[str], problem: str, root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run, *words = settings
    config = request.getfixturevalue(kind)
    codes, text = csa_runs.train(config, root, *BARELY, f"pretrained.run={run}", *words, f"run.name={tmp_path.name}")
    assert codes == [ExitCode.CONFIG] and problem in text, text
    assert "Traceback" not in text


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders of Hugging Face: `wav2vec2`, `bert`, `wide`; `empty`, `without_weights`, `of_another`: a BERT's."""
    folder = tmp_path_factory.mktemp("directories")
    csa_runs.save_wav2vec2(folder / "wav2vec2")
    csa_runs.save_bert(folder / "bert")
    csa_runs.save_bert(folder / "wide", width=24)
    (folder / "empty").mkdir()
    for name in ("without_weights", "of_another"):
        shutil.copytree(folder / "wav2vec2", folder / name)
    (folder / "without_weights" / "model.safetensors").unlink()
    shutil.copyfile(folder / "bert" / "model.safetensors", folder / "of_another" / "model.safetensors")
    write_manifest([], folder / "nothing.jsonl")
    csa_runs.write_config(
        folder / "corpus",
        speech=f"    kind: pretrained\n    path: {folder}/wav2vec2\n",
        text=f"    kind: pretrained\n    path: {folder}/bert\n",
        tokenizer=f"    kind: huggingface\n    directory: {folder}/bert\n",
    )
    return folder


def test_a_frozen_text_encoder_is_in_no_checkpoint(directories: Path, tmp_path: Path) -> None:
    words = ("parallel.strategy=deepspeed", "train.max_steps=1", "train.validate_every_steps=1")
    settings = ("parallel.precision=auto", "model.speech.attention=eager")
    codes, text = csa_runs.train(directories / "corpus" / "csa.yaml", tmp_path, *words, *settings)
    assert codes == [ExitCode.DONE], text
    assert read_json(tmp_path / "tiny" / RUN_CONTEXT)["effective"] == {
        "eta_mode": "rank0", "speech_attention": "eager", "text_attention": "sdpa", "precision": "fp32",
    }  # fmt: skip
    names = runs.state(tmp_path / "tiny")
    assert any("speech_encoder" in name for name in names) and not any("text_encoder" in name for name in names)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["model.speech.path={0}/missing"], "missing is not a directory; name one of a Hugging Face model"),
        (["model.speech.path={0}/empty"], "empty has no config.json"),
        (["model.speech.path={0}/bert"], "holds a model of type bert; expected one of hubert, wav2vec2"),
        (["model.speech.path={0}/without_weights"], "has no weights"),
        (["model.speech.path={0}/of_another"], "unexpected: "),
        (["model.speech.hidden_state=3"], "hidden_state=3 must be 1 to 2"),
        (["model.text.path={0}/missing"], "missing is not a directory; name one of a Hugging Face model"),
        (["model.text.path={0}/wav2vec2"], "expected a text encoder as bert"),
        (["data.tokenizer.directory={0}/missing"], "missing is neither a folder nor cached here"),
        (
            ["model.projection_dim=null", "model.pooling.kind=mean", "model.text.path={0}/wide"],
            "needs encoders of one width, but speech has 16 and text 24; set projection_dim, or take att_flat",
        ),
        (["parallel.precision=fp16"], "parallel.precision=fp16 needs a GPU; use fp32 or bf16 on a CPU"),
        (["plan.max_cuts=31", "plan.max_duration_s=60"], "30 cuts, and each micro-batch takes 31 different ones"),
        (["data.train={0}/missing.jsonl"], "missing.jsonl"),
        (["data.test={0}/nothing.jsonl"], "source 'test' has no rows; prepare its manifest again"),
        (["data.pcm_cache=true"], "prepare"),
        (["predecessor={0}/missing.pth"], "missing.pth does not exist; name a .pth file, or a DeepSpeed directory"),
        (["pretrained.run=tiny1"], "pretrained must be null with model.speech.kind=pretrained"),
    ],
)
def test_what_cannot_be_trained_is_said_before_it_begins(
    settings: list[str], problem: str, directories: Path, tmp_path: Path
) -> None:
    words = [word.format(directories) for word in settings]
    codes, text = csa_runs.train(directories / "corpus" / "csa.yaml", tmp_path, *words)
    assert codes[0] in (ExitCode.CONFIG, ExitCode.DATA) and problem in text, text
    assert "Traceback" not in text


def test_clips_without_words_or_audio_are_listed_and_left_out(root: Path, tmp_path: Path) -> None:
    """In training and in the gallery."""
    config = csa_runs.write_config(tmp_path / "corpus")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    for split, num in (("train", 30), ("test", csa_runs.NUM_TEST)):
        cuts = runs.demo_cuts(split, num)
        silent = cuts[0].map_supervisions(lambda one: one.transform_text(lambda _: "..."))
        broken = runs.of_file(cuts[1], tmp_path / "broken.wav")
        write_manifest([silent, broken, *cuts[2:]], tmp_path / "corpus" / f"{split}.jsonl")
    words = ("parallel.strategy=ddp", "train.max_steps=3", "train.validate_every_steps=null")
    codes, text = csa_runs.train(config, tmp_path, *words)
    assert codes == [ExitCode.DONE], text
    reasons = {record["sample_id"]: record["reason"] for record in read_records(tmp_path / "tiny" / BAD_SAMPLES)}
    assert len(reasons) == 2 and "broken" in reasons
    assert any("no words are spoken" in reason for reason in reasons.values())
    assert f"{csa_runs.NUM_TEST - 2} pairs of" in text
