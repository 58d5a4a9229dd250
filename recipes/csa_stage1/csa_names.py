"""Weights of the predecessor (CSRef 2.0) for our model: its DeepSpeed checkpoints, and the older `ckpt_epoch_8.pth`.

    report = import_predecessor(model, Path("outputs/iter_20000"))      # or .../mp_rank_00_model_states.pt, or a .pth
    logger.info("%s", report)

Theirs -> ours, whatever one or two modules stand between `speech_encoder.` and the name:

    audio_encoder.* (the older file), speech_encoder.*      speech_encoder.*
    speech_encoder.**.mlp.fc.linear.*, mlp.linear.*,
        linear_merge.* (AttFlat)                            speech_pooling.*
    speech_encoder.**.NAME (NAME of the Hugging Face model) speech_encoder.model.NAME
    logit_scale                                             log_scale, of shape (1,)
    text_encoder.**.NAME                                    text_encoder.model.NAME; passed over where it is frozen,
                                                            since it came from its own directory
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.models.csa import CsaModel
from core.unpickling import check_regular

_STATES = "mp_rank_00_model_states.pt"
_OLD_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
_SHOWN = 8


@dataclass(frozen=True)
class ImportReport:
    """The result of an import: names of ours that were filled, names of ours that stay, names of theirs without use."""

    loaded: list[str]
    kept: list[str]
    passed_over: list[str]

    def __str__(self) -> str:
        return (
            f"{len(self.loaded)} tensors loaded; {len(self.kept)} stay as they are: {_some(self.kept)}; "
            f"{len(self.passed_over)} of the file are of no use here: {_some(self.passed_over)}"
        )


def import_predecessor(model: CsaModel, path: Path) -> ImportReport:
    """Copy the predecessor's tensors into the model, before it is made ready for many ranks.

    ValueError, with nothing changed, that lists tensors of the speech side (and of a text encoder trained along) that
    are missing, those that are unknown, and those of another size.
    """
    state = read_predecessor(path)
    is_old = any(name.startswith("audio_encoder.") for name in state)
    own = model.state_dict()
    found: dict[str, str] = {}
    problems, passed_over = [], []
    for theirs in state:
        ours = _ours(theirs, own, is_old=is_old)
        if ours is None and _is_of_no_use(theirs, own, is_old=is_old):
            passed_over.append(theirs)
        elif ours is None:
            problems.append(f"{theirs} is unknown")
        elif ours in found:
            problems.append(f"{theirs} and {found[ours]} are both {ours}")
        else:
            found[ours] = theirs
            if state[theirs].numel() != own[ours].numel() or state[theirs].shape not in (own[ours].shape, ()):
                problems.append(f"{theirs} is {tuple(state[theirs].shape)} instead of {tuple(own[ours].shape)}")
    kept = [name for name in own if name not in found]
    problems += [f"{name} is missing" for name in kept if _is_needed(name, is_old=is_old)]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems[:_SHOWN])}{more}")
    with torch.no_grad():
        for ours, theirs in found.items():
            own[ours].copy_(state[theirs].reshape(own[ours].shape))
    return ImportReport(sorted(found), kept, passed_over)


def read_predecessor(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, which may name no classes but torch's own.

    `path`: a file by torch.save, of tensors or with them under `module`, `model` or `state_dict`; or a DeepSpeed
    directory of ZeRO 0 to 2.
    """
    file = path / _STATES if path.is_dir() else path
    if not file.exists():
        if any(path.glob("zero_pp_rank_*")):
            advice = "make one file of it with the zero_to_fp32.py that stands beside it"
            raise ValueError(f"{path} is a checkpoint of ZeRO 3, whose weights are in pieces; {advice}")
        raise ValueError(f"{file} does not exist; name a .pth file, or a DeepSpeed directory with {_STATES}")
    check_regular(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of torch's unpickler: a class that it refuses, or damage
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{file} is not opened, since it holds more than tensors, or is damaged ({reason}); where you trust it, "
            "save what it has under `module` by itself"
        ) from error
    for key in ("module", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise ValueError(f"{file} holds no tensors by name")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _ours(theirs: str, own: Mapping[str, Tensor], *, is_old: bool) -> str | None:
    """Return the name of ours that a name of theirs stands for."""
    if is_old:
        if not theirs.startswith("audio_encoder."):
            return None
        theirs = theirs.replace("audio_encoder.", "speech_encoder.", 1)
    if theirs == "logit_scale":
        return "log_scale"
    side, _, rest = theirs.partition(".")
    stem, _, last = rest.rpartition(".")
    rest = f"{stem}.{_OLD_WEIGHT_NORM[last]}" if last in _OLD_WEIGHT_NORM else rest
    parts = rest.split(".")
    places = {"speech_encoder": ["speech_encoder.model", "speech_pooling"], "text_encoder": ["text_encoder.model"]}
    for first in range(min(3, len(parts))):
        for place in places.get(side, []):
            if (name := ".".join([place, *parts[first:]])) in own:
                return name
    return None


def _is_of_no_use(theirs: str, own: Mapping[str, Tensor], *, is_old: bool) -> bool:
    """Return whether a name that is none of ours may be left out."""
    if is_old and not theirs.startswith("audio_encoder."):
        return True
    if theirs.startswith("text_encoder."):
        is_frozen = not any(name.startswith("text_encoder.") for name in own)
        return is_frozen or re.search(r"\.pooler\.|\.position_ids$", theirs) is not None
    if layer := re.search(r"\.encoder\.layers\.\d+\.", theirs):  # behind the hidden state that is pooled
        return not any(name.startswith(f"speech_encoder.model{layer[0]}") for name in own)
    return theirs.endswith(".masked_spec_embed")


def _is_needed(name: str, *, is_old: bool) -> bool:
    """Return whether the predecessor has it: it knows no projections, and the older file no scale."""
    if name == "log_scale":
        return not is_old
    is_of_encoders = name.startswith(("speech_encoder.", "speech_pooling.", "text_encoder."))
    return is_of_encoders and not name.endswith(".masked_spec_embed")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "") or "none"
