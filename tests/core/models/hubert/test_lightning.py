"""A checkpoint of the predecessor goes on here as it would have gone on there: weights, moments, number of updates."""

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.models.hubert.lightning import import_moments, read_lightning
from core.models.hubert.model import HubertPretraining
from core.models.hubert.names import export_state, import_state
from core.optim.optim import OptimConfig, build_optimizer
from core.optim.parameters import DecayConfig
from tests.closeness import assert_close
from tests.core.models.hubert.test_model import rival_of, seeded, small_config

pytestmark = pytest.mark.numerics

NUM_UPDATES = 3


def gradients(model: nn.Module, *, seed: int) -> None:
    """The same for every parameter, whatever its name and axes: a function of its number in torchaudio's order."""
    for number, parameter in enumerate(model.parameters()):
        torch.manual_seed(1000 * seed + number)
        parameter.grad = torch.randn(parameter.numel()).view(parameter.shape)


def trained_rival() -> tuple[nn.Module, torch.optim.Optimizer]:
    """torchaudio's model after some updates of AdamW, as the predecessor makes it."""
    rival = rival_of(seeded(small_config()))
    optimizer = torch.optim.AdamW(rival.parameters(), lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    for update in range(NUM_UPDATES):
        gradients(rival, seed=update)
        optimizer.step()
    return rival, optimizer


def lightning(rival: nn.Module, optimizer: torch.optim.Optimizer, *, is_habana: bool) -> dict[str, Any]:
    """What Lightning saves. Habana: Conv2d over (1, time) in the front-end, the updates counted in the group."""
    state, of_optimizer = rival.state_dict(), copy.deepcopy(optimizer.state_dict())
    names = list(state)
    flat = [name for name in names if is_habana and "feature_extractor" in name and name.endswith("conv.weight")]
    assert not is_habana or len(flat) == 7
    moments = of_optimizer["state"]
    for name in flat:
        assert state[name].dim() == 3
        state[name] = state[name].unsqueeze(2)
        for moment in ("exp_avg", "exp_avg_sq"):
            moments[names.index(name)][moment] = moments[names.index(name)][moment].unsqueeze(2)
    if is_habana:
        of_optimizer["param_groups"][0]["step"] = NUM_UPDATES
        for one in moments.values():
            one["step"] = 0
    return {
        "epoch": 220,
        "global_step": NUM_UPDATES,
        "pytorch-lightning_version": "2.0.6",
        "state_dict": OrderedDict((f"model.{name}", tensor) for name, tensor in state.items()),
        "optimizer_states": [of_optimizer],
        "lr_schedulers": [{"last_epoch": NUM_UPDATES, "_last_lr": [1e-2]}],
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(1.5)}},
        "loops": {"fit_loop": {"state_dict": {}}},
    }


def saved(path: Path, content: dict[str, Any]) -> Path:
    torch.save(content, path)
    return path


def fresh() -> tuple[HubertPretraining, torch.optim.Optimizer]:
    torch.manual_seed(99)
    model = HubertPretraining(small_config())
    decay = DecayConfig(to="all")
    optim = OptimConfig(lr=1e-2, betas=[0.9, 0.98], eps=1e-6, weight_decay=0.01, decay=decay)
    return model, build_optimizer(model, optim)


@pytest.mark.parametrize("is_habana", [True, False], ids=["habana", "torchaudio"])
def test_training_goes_on_as_it_would_have(is_habana: bool, tmp_path: Path) -> None:
    rival, their_optimizer = trained_rival()
    path = saved(tmp_path / "epoch=220-step=3.ckpt", lightning(rival, their_optimizer, is_habana=is_habana))
    model, optimizer = fresh()
    checkpoint = read_lightning(path)
    assert import_state(model, checkpoint.tensors, "torchaudio") == []
    assert import_moments(model, optimizer, checkpoint) == NUM_UPDATES
    ours = export_state(model, "torchaudio")
    theirs = rival.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    before = {name: tensor.clone() for name, tensor in theirs.items()}
    for update in range(2):
        gradients(rival, seed=50 + update)
        of_name = {name: parameter.grad for name, parameter in rival.named_parameters()}
        _give(model, of_name)
        their_optimizer.step()
        optimizer.step()
    ours, theirs = export_state(model, "torchaudio"), rival.state_dict()
    for name, tensor in theirs.items():
        assert (tensor - before[name]).abs().max() > 1e-3
        assert_close(ours[name], tensor, name=name)


def _give(model: HubertPretraining, gradient_of: dict[str, Tensor | None]) -> None:
    """Gradients by torchaudio's names."""
    names = {id_: name for name, id_ in _identities(model).items()}
    for parameter in model.parameters():
        parameter.grad = gradient_of[names[parameter.data_ptr()]]


def _identities(model: HubertPretraining) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in export_state(model, "torchaudio").items()}


def test_moments_that_do_not_fit_are_named_and_change_nothing(tmp_path: Path) -> None:
    rival, their_optimizer = trained_rival()
    content = lightning(rival, their_optimizer, is_habana=True)
    names = list(content["state_dict"])
    moments = content["optimizer_states"][0]["state"]
    place = names.index("model.logit_generator.label_embeddings")
    moments[place]["exp_avg"] = torch.zeros(9, 12)
    content["state_dict"]["model.other.weight"] = content["state_dict"].pop(names[-1])
    checkpoint = read_lightning(saved(tmp_path / "other.ckpt", content))
    model, optimizer = fresh()
    with pytest.raises(ValueError, match="do not fit the model") as error:
        import_moments(model, optimizer, checkpoint)
    assert "has no moments" in str(error.value) and "model.other.weight is unexpected" in str(error.value)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda content: content["optimizer_states"].clear(), "not a checkpoint of Lightning"),
        (lambda content: content.pop("state_dict"), "not a checkpoint of Lightning"),
        (lambda content: content["optimizer_states"][0]["state"].pop(4), "not a checkpoint of Lightning"),
        (
            lambda content: content["optimizer_states"][0]["param_groups"][0]["params"].pop(),
            "parameters, the model has",
        ),
        (lambda content: content["optimizer_states"][0]["state"][2].update(step=9), "different numbers of updates"),
        (lambda content: content.update(place=Path("/")), "refused: pathlib"),
    ],
)
def test_another_file_is_refused(damage: Any, problem: str, tmp_path: Path) -> None:
    content = lightning(*trained_rival(), is_habana=True)
    damage(content)
    with pytest.raises(ValueError, match=problem):
        read_lightning(saved(tmp_path / "bad.ckpt", content))
