"""The sections of YAML that configure a plan: of speech, whose lengths are seconds, and of tokens."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from core.config.schema import section
from core.samplers.admission import Admitted
from core.samplers.bucketing import Bucketing, BucketingConfig
from core.samplers.budget import Budget, BudgetKeys, ShapedBudget, Shapes
from core.samplers.constant import ConstantBucketing

_SPEECH = BudgetKeys("max_duration_s", "max_cuts", "min_cut_s", "max_cut_s", "cut")
_TOKENS = BudgetKeys("max_tokens", "max_sequences", "min_length", "max_length", "sequence")


@section
class PlanConfig(BucketingConfig):
    """How draws become micro-batches of speech.

    A step is `micro_batches_per_step` micro-batches, whatever the number of ranks. A micro-batch holds at most
    `max_cuts` cuts and `max_duration_s` of PADDED audio: number of cuts x longest cut. With `quadratic_duration_s` = Q
    a cut of d seconds counts as d + d^2 / Q, for models whose cost grows with the square of the length.
    A cut is over budget when it is longer than `max_cut_s` (default: the longest that fits in `max_duration_s`):
    `over_budget` says whether that is an error, or the cut is cropped by the reader, put alone in a micro-batch of its
    own, or skipped. A cut shorter than `min_cut_s` is skipped. Skipped cuts are counted in `Plan.statistics`.
    `chunk_draws` cuts at most are planned at a time, in `num_buckets` classes of length.
    `constant_cuts`: each micro-batch holds exactly `max_cuts` cuts, so the longest that are allowed must fit in.

    `alike_micro_batches` of a step are of like length; null: all of them. Ranks that run at the same time need that, or
    they wait for each other, so the number of dp ranks must divide it; accumulation does not need it. What is alike in
    length is alike in all that goes with length: where classes (languages, sorts of text) differ in length, a step may
    hold one class alone and training be unsteady. Then set it to the number of dp ranks; `describe()` prints the spread
    of lengths within a step beside that of all.
    """

    max_duration_s: Annotated[float, Field(gt=0)]
    max_cuts: Annotated[int, Field(ge=1)] | None = None
    quadratic_duration_s: Annotated[float, Field(gt=0)] | None = None
    min_cut_s: Annotated[float, Field(ge=0)] = 0.0
    max_cut_s: Annotated[float, Field(gt=0)] | None = None
    constant_cuts: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.constant_cuts:
            self._check_constant()

    def _check_constant(self) -> None:
        budget, longest = self.budget, np.array(self.allowed_s)
        if self.max_cuts is None:
            raise ValueError("constant_cuts=true needs max_cuts: how many cuts each micro-batch has")
        if self.over_budget == "alone":
            raise ValueError("over_budget=alone makes micro-batches of one cut; with constant_cuts use crop or skip")
        if budget.capacity(longest) < self.max_cuts:
            raise ValueError(
                f"max_duration_s={self.max_duration_s:g} must hold max_cuts={self.max_cuts} cuts of {self.allowed_s:g} "
                f"s with constant_cuts; raise it to {self.max_cuts * float(budget.cost(longest)):g}, "
                "or lower max_cut_s"
            )

    @property
    def budget(self) -> Budget:
        return Budget(
            unit="s",
            keys=_SPEECH,
            total=self.max_duration_s,
            max_examples=self.max_cuts,
            quadratic=self.quadratic_duration_s,
            min_length=self.min_cut_s,
            max_length=self.max_cut_s,
            over_budget=self.over_budget,
        )

    @property
    def allowed_s(self) -> float:
        """The longest cut that is not over budget."""
        return self.budget.allowed

    def batching(self, admitted: Sequence[Admitted], sample: np.ndarray) -> Bucketing:
        if not self.constant_cuts:
            return Bucketing(self, admitted, sample)
        assert self.max_cuts is not None
        return ConstantBucketing(self, admitted, sample, size=self.max_cuts)


@section
class ShapedPlanConfig(PlanConfig):
    """The rules of PlanConfig, with static shapes for datasets that know of them: those of masked prediction.

    `static_shapes`: each micro-batch is padded to one of `num_buckets` shapes. Their lengths are the upper ends of
    classes of length, equally wide from `min_cut_s` to the longest cut allowed; each has as many rows as fit in the
    budget, whether cuts fill them or silence.
    """

    static_shapes: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.static_shapes and self.constant_cuts:
            raise ValueError("static_shapes=true has micro-batches of its own sizes; set constant_cuts=false")
        if self.static_shapes and self.over_budget == "alone":
            raise ValueError("over_budget=alone makes longer micro-batches; with static_shapes use crop or skip")

    @property
    def budget(self) -> Budget:
        budget = super().budget
        return ShapedBudget(**vars(budget), num_shapes=self.num_buckets) if self.static_shapes else budget

    @property
    def shapes(self) -> Shapes | None:
        """The static shapes; None where a micro-batch is as long as its longest cut."""
        budget = self.budget
        return budget.shapes if isinstance(budget, ShapedBudget) else None


@section
class TokenPlanConfig(BucketingConfig):
    """How draws become micro-batches of token sequences: the rules of PlanConfig, with `max_tokens` PADDED tokens.

    A micro-batch holds at most `max_sequences` sequences. A sequence shorter than `min_length` tokens is skipped; one
    longer than `max_length` (default: `max_tokens`) is over budget.
    """

    max_tokens: Annotated[int, Field(ge=1)]
    max_sequences: Annotated[int, Field(ge=1)] | None = None
    min_length: Annotated[int, Field(ge=0)] = 0
    max_length: Annotated[int, Field(ge=1)] | None = None

    @property
    def budget(self) -> Budget:
        return Budget(
            unit="tokens",
            keys=_TOKENS,
            total=self.max_tokens,
            max_examples=self.max_sequences,
            min_length=self.min_length,
            max_length=self.max_length,
            over_budget=self.over_budget,
        )
