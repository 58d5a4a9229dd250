"""What DeepSpeed's ZeRO 1 to 3 hold of a model and its optimizer, under the names that every checkpoint knows them by.

ZeRO lays the parameters of an optimizer group end to end, and a rank updates a stretch of that: its states are flat
tensors that hold pieces of many parameters. At stage 3 the parameters themselves are dealt in stretches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from core.parallel.flat_shard import FlatShard
from core.parallel.names import bare_name, make_states, model_tensors, parameter_names, partition_tensors
from core.parallel.weights import Named, Saved


@dataclass(frozen=True)
class ParameterFragment:
    """The elements of a parameter that this rank has in a flat tensor; there may be none."""

    name: str
    shape: torch.Size
    start: int  # among the parameter's elements
    flat: Tensor
    place: int  # among those of the flat tensor
    size: int

    def of(self, flat: Tensor) -> FlatShard:
        return FlatShard(self.shape, self.start, flat.detach().narrow(0, self.place, self.size))


class ZeroTensors:
    """The tensors of one DeepSpeed optimizer of stage 1, 2 or 3 (`zero`), and how to fill them."""

    def __init__(self, model: nn.Module, zero: Any, *, stage: int, kind: str, rank: int) -> None:
        """Take over the optimizer's tensors. `kind`: its name as torch has it, whoever's it is."""
        self._model, self._zero, self._stage, self._rank = model, zero, stage, rank
        self._marker = {f"optimizer_class.{kind}": torch.zeros(())}
        self._numbers: dict[str, Tensor] = {}  # being read

    def share(self, *, group: dist.ProcessGroup | None) -> Named:
        """Return what this rank writes."""
        of_model = self._of_model()
        return partition_tensors(
            {**of_model, **self._marker, **self._states()},
            of_first=of_model.keys() - parameter_names(self._model),
            group=group,
        )

    def targets(self, saved: Saved, *, weights_only: bool) -> Named:
        """Return what a checkpoint is read into; then call `loaded`. States are made or dropped as it has them."""
        if self._stage == 3:
            self._zero.empty_partition_cache()  # what is gathered would hide what is read
        if weights_only:
            return self._of_model()
        base = self._base()
        if any(name.startswith("optimizer.") for name in saved):
            self._make_states(base)
        else:
            base.state.clear()
        states = self._states()
        self._numbers = {name: value for name, value in states.items() if isinstance(value, Tensor)}
        return {**self._of_model(), **self._marker, **states}

    def loaded(self) -> None:
        """Take over what was read: numbers into the states, and the parameters into the copies that are updated.

        ValueError, on all ranks alike, for numbers that differ where ZeRO keeps only one of them.
        """
        self._zero.refresh_fp32_params()
        base = self._base()
        taken: dict[tuple[Tensor, str], float] = {}
        for fragment in self._fragments():
            state = base.state.get(fragment.flat, {})
            for key in [key for key in state if f"optimizer.{fragment.name}.{key}" in self._numbers]:
                number = float(self._numbers[f"optimizer.{fragment.name}.{key}"])
                if taken.setdefault((fragment.flat, key), number) != number:
                    raise ValueError(
                        f"optimizer.{fragment.name}.{key} is {number:g} and that of another parameter is "
                        f"{taken[fragment.flat, key]:g}; ZeRO keeps one for both: go on with zero.stage=0, ddp or fsdp2"
                    )
                if isinstance(state[key], Tensor):
                    state[key].fill_(number)
                else:
                    state[key] = type(state[key])(number)
        self._numbers = {}

    def clear_gradients(self) -> None:
        """Clear gradients that have a place for good, which would count again in a step without their parameter."""
        kept = [flat.grad for flat, _ in self._groups() if flat.grad is not None]
        if self._stage == 3:
            kept.append(self._zero.grad_partitions_flat_buffer)
        if kept:
            torch._foreach_zero_(kept)

    def _of_model(self) -> Named:
        if self._stage < 3:
            return model_tensors(self._model)
        values = self._model.state_dict(keep_vars=True)
        return {f"model.{bare_name(name)}": self._whole_or_shard(value) for name, value in values.items()}

    def _whole_or_shard(self, value: Any) -> Tensor | FlatShard:
        if not hasattr(value, "ds_id"):  # a buffer
            return value.detach()
        start = min(self._rank * value.ds_tensor.numel(), value.ds_numel)
        size = min(value.ds_tensor.numel(), value.ds_numel - start)
        return FlatShard(torch.Size(value.ds_shape), start, value.ds_tensor.detach().flatten().narrow(0, 0, size))

    def _states(self) -> dict[str, Tensor | FlatShard]:
        """Return states: one of the flat tensor's size is split like it; a number becomes a tensor."""
        found: dict[str, Tensor | FlatShard] = {}
        base = self._base()
        numbers: dict[tuple[Tensor, str], float] = {}  # each waits for the device once
        for fragment in self._fragments():
            for key, value in base.state.get(fragment.flat, {}).items():
                name, place = f"optimizer.{fragment.name}.{key}", (fragment.flat, key)
                if isinstance(value, Tensor) and value.shape == fragment.flat.shape:
                    found[name] = fragment.of(value)
                    continue
                if place not in numbers:
                    numbers[place] = float(value)
                found[name] = torch.tensor(numbers[place])
        return found

    def _base(self) -> Optimizer:
        base: Optimizer = self._zero.optimizer
        return base

    def _make_states(self, base: Optimizer) -> None:
        flats = [flat for flat, _ in self._groups()]
        if self._stage == 3:  # between steps DeepSpeed leaves the groups empty
            self._zero._set_fp32_optimizer_param_groups()
        try:
            make_states(base, flats)
        finally:
            if self._stage == 3:
                self._zero._clear_fp32_optimizer_param_groups()

    def _groups(self) -> list[tuple[Any, list[nn.Parameter]]]:
        """Return each flat tensor that this rank updates, with the parameters that parts of it belong to."""
        if self._stage == 3:
            return list(zip(self._zero.fp32_partitioned_groups_flat, self._zero.fp16_groups, strict=True))
        return list(zip(self._zero.single_partition_of_fp32_groups, self._zero.bit16_groups, strict=True))

    def _fragments(self) -> Iterator[ParameterFragment]:
        names = {parameter: bare_name(name) for name, parameter in self._model.named_parameters()}
        for flat, parameters in self._groups():
            for parameter in parameters:
                yield self._fragment(names[parameter], parameter, flat)

    def _fragment(self, name: str, parameter: Any, flat: Tensor) -> ParameterFragment:
        if self._stage == 3:
            _, place, length = self._zero.grad_position[self._zero.get_param_id(parameter)]
            start = min(self._rank * length, parameter.ds_numel)
            size = min(length, parameter.ds_numel - start)
            return ParameterFragment(name, torch.Size(parameter.ds_shape), start, flat, place, size)
        mapping = parameter._hp_mapping
        if mapping is None:
            return ParameterFragment(name, parameter.shape, 0, flat, 0, 0)
        in_parameter, in_flat = mapping.lp_fragment_address, mapping.hp_fragment_address
        return ParameterFragment(name, parameter.shape, in_parameter.start, flat, in_flat.start, in_flat.numel)
