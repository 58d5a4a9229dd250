"""Static shapes: every micro-batch is padded to one of a few sizes, for models that are compiled for each of them.

The predecessor's `bucket1` padded to the ends of classes of equal width as well, but its batches spanned classes and
exceeded the budget, and the number of their rows varied.
"""

import numpy as np

from core.config.schema import section
from core.samplers.rules import PlanConfig, Shapes


@section
class ShapedPlanConfig(PlanConfig):
    """`static_shapes`: each micro-batch is padded to one of `num_buckets` shapes. Their lengths are the upper ends of
    classes of length, equally wide from `min_cut_s` to the longest cut allowed; each has as many rows as fit in the
    budget, whether cuts fill them or silence. For datasets that know of it (core/units/masked_speech.py).
    """

    static_shapes: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.static_shapes and self.constant_cuts:
            raise ValueError("static_shapes=true has micro-batches of its own sizes; set constant_cuts=false")
        if self.static_shapes and self.over_budget == "alone":
            raise ValueError("over_budget=alone makes longer micro-batches; with static_shapes use crop or skip")

    @property
    def shapes(self) -> Shapes | None:
        if not self.static_shapes:
            return None
        upper_s = np.linspace(self.min_cut_s, self.allowed_s, self.num_buckets + 1)[1:]
        return Shapes(upper_s, self.capacity(upper_s))
