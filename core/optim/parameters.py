"""Which parameters of a model learn and which decay, by expressions over their names; and the table that shows it.

An expression is a regular expression matched from the start of the name (`encoder\\.` is all of the encoder). One that
matches nothing is a mistake, and is said.
"""

import re
from collections.abc import Iterable
from dataclasses import field
from io import StringIO
from math import prod
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field
from torch import nn

from core.config.schema import section

if TYPE_CHECKING:
    from rich.table import Table

TABLE_WIDTH = 120


@section
class FreezeConfig:
    """Parameters whose name matches one of `patterns` and none of `exceptions` are not trained."""

    patterns: list[str] = field(default_factory=list)
    exceptions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_expressions(patterns=self.patterns, exceptions=self.exceptions)
        if self.exceptions and not self.patterns:
            raise ValueError(f"exceptions={self.exceptions} must be exceptions from patterns; there are none")


@section
class ThawConfig:
    """Parameters whose name matches one of `patterns` begin to learn after `after_steps` updates.

    Until then neither they nor what the optimizer keeps of them change: no gradient, no decay, no moments.
    """

    patterns: list[str]
    after_steps: Annotated[int, Field(ge=1)]

    def __post_init__(self) -> None:
        check_expressions(patterns=self.patterns)


@section
class DecayConfig:
    """The reach of weight decay: `matrices` leaves out what has one dimension (biases, norms), `all` nothing."""

    to: Literal["matrices", "all"] = "matrices"
    exceptions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_expressions(exceptions=self.exceptions)


class Parameter(NamedTuple):
    """The facts about one parameter of a model."""

    name: str
    tensor: nn.Parameter
    is_trained: bool
    decays: bool


def freeze(model: nn.Module, config: FreezeConfig) -> None:
    """Set `requires_grad` as the config says; before the model is made ready for many ranks."""
    names = _named(model)
    for name in _selected(names, config):
        names[name].requires_grad_(False)


def late_parameters(model: nn.Module, config: ThawConfig) -> list[nn.Parameter]:
    """Return those that begin to learn later, never those that never do. ValueError where none is left at first."""
    names = {name: tensor for name, tensor in _named(model).items() if tensor.requires_grad}
    late = _matching(names, config.patterns, key="thaw.patterns")
    if len(late) == len(names):
        raise ValueError(
            f"thaw.patterns={config.patterns} must leave a parameter to train in the first {config.after_steps} updates"
        )
    return [tensor for name, tensor in names.items() if name in late]


def parameters(model: nn.Module, *, freeze: FreezeConfig, decay: DecayConfig) -> list[Parameter]:
    """Return the parameters of a model, in its own order. ValueError for an expression that matches no name."""
    names = _named(model)
    frozen = _selected(names, freeze)
    excepted = _matching(names, decay.exceptions, key="decay.exceptions")
    return [
        Parameter(
            name,
            tensor,
            is_trained=tensor.requires_grad and name not in frozen,
            decays=name not in excepted and (decay.to == "all" or tensor.ndim > 1),
        )
        for name, tensor in names.items()
    ]


def parameter_table(found: Iterable[Parameter]) -> "Table":
    """Return a table with one row for parameters that differ in the number of their layer (`layers.*.norm.weight`)."""
    from rich.table import Table

    rows: dict[tuple[str, str, bool, bool], list[int]] = {}
    for parameter in found:
        pattern = re.sub(r"\.\d+\.", ".*.", parameter.name, count=1)
        shape = " x ".join(str(size) for size in parameter.tensor.shape) or "1"
        sizes = rows.setdefault((pattern, shape, parameter.is_trained, parameter.decays), [])
        sizes.append(prod(parameter.tensor.shape))
    table = Table(title="Parameters", show_footer=True, title_justify="left")
    trained = sum(sum(sizes) for (_, _, is_trained, _), sizes in rows.items() if is_trained)
    total = sum(sum(sizes) for sizes in rows.values())
    table.add_column("name", footer="total", overflow="fold")
    table.add_column("shape", justify="right")
    table.add_column("times", justify="right")
    table.add_column("parameters", justify="right", footer=f"{total:,}")
    table.add_column("trained", footer=f"{trained:,}")
    table.add_column("decays")
    for (pattern, shape, is_trained, decays), sizes in rows.items():
        words = ("yes" if is_trained else "frozen", ("yes" if decays else "no") if is_trained else "")
        table.add_row(pattern, shape, str(len(sizes)), f"{sum(sizes):,}", *words)
    return table


def describe_parameters(model: nn.Module, *, freeze: FreezeConfig, decay: DecayConfig) -> str:
    """Return the table as text for a log; call it before the model is made ready for many ranks."""
    from rich.console import Console

    text = StringIO()
    Console(width=TABLE_WIDTH, file=text).print(parameter_table(parameters(model, freeze=freeze, decay=decay)))
    return text.getvalue().rstrip()


def check_expressions(**expressions: list[str]) -> None:
    """Raise ValueError for what is not a regular expression."""
    for key, patterns in expressions.items():
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{key}={pattern} must be a regular expression: {error}") from error


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters by the names that the model's own code gives them, without wrappers."""
    return {name.replace("_checkpoint_wrapped_module.", ""): tensor for name, tensor in model.named_parameters()}


def _selected(names: Iterable[str], config: FreezeConfig) -> set[str]:
    chosen = _matching(names, config.patterns, key="freeze.patterns")
    exceptions = _matching(chosen, config.exceptions, key="freeze.exceptions")
    return chosen - exceptions


def _matching(names: Iterable[str], patterns: list[str], *, key: str) -> set[str]:
    matched: set[str] = set()
    for pattern in patterns:
        of_this = {name for name in names if re.match(pattern, name)}
        if not of_this:
            known = sorted({name.partition(".")[0] for name in names})
            raise ValueError(f"{key}={pattern} must match a parameter; names begin with {', '.join(known)}")
        matched |= of_this
    return matched
