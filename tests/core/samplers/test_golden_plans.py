"""The steps of some plans, as they were when plans counted nothing but seconds: a run begun then goes on exactly."""

import hashlib
import json
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest

from core.samplers.blend import Draws
from core.samplers.plan import EvaluationPlan, Plan, Source
from core.samplers.settings import ShapedPlanConfig

_RNG = np.random.default_rng(3)
LONG = _RNG.gamma(6, 1.5, 3000).clip(1, 30).astype(np.float32)
WIDE = _RNG.gamma(3, 2.0, 700).clip(0.5, 45).astype(np.float32)
FEW = _RNG.gamma(3, 2.0, 37).clip(0.5, 12).astype(np.float32)
A, B, C = Source("a", LONG), Source("b", WIDE), Source("c", FEW)
CONSTANT = {"max_duration_s": 48.0, "max_cuts": 16, "constant_cuts": True, "max_cut_s": 3.0, "over_budget": "crop"}
SHAPED = {"max_cut_s": 15.0, "min_cut_s": 1.0, "static_shapes": True}


def digest(what: Any) -> str:
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=8).hexdigest()


def crop_lengths(draws: Draws, *, segment: int) -> np.ndarray:
    return np.minimum(1 + ((draws.row * 7 + draws.epoch * 3 + segment) % 20) / 10, draws.length).astype("f4")


@pytest.mark.parametrize(("sources", "changes", "lengths", "expected"), [
    ([A], {}, None,
     ("ad79e6aa724ced61", "a9c6e4fffc9a9852", "12afd42c570c8b18", "5321c08826807499")),
    ([A], {"chunk_draws": 333}, None,
     ("ad79e6aa724ced61", "b531da8806d1142b", "3b86431d4b45810d", "5321c08826807499")),
    ([A], {"quadratic_duration_s": 70.0, "max_cuts": 7}, None,
     ("ad79e6aa724ced61", "961e6a67439c8aeb", "54cd82004d61ac2c", "22398872f3445dd2")),
    ([B], {"max_cut_s": 15.6, "min_cut_s": 2.0, "over_budget": "skip"}, None,
     ("9515f36989e0cc1d", "8d5c387fb9c8c48a", "d5e14c33cbe6b469", "626a0236084cfbcc")),
    ([B], {"max_cut_s": 15.6, "min_cut_s": 2.0, "over_budget": "crop"}, None,
     ("9515f36989e0cc1d", "c383a0fba1053525", "898754d4c0452888", "626a0236084cfbcc")),
    ([B], {"max_cut_s": 15.6, "over_budget": "alone"}, None,
     ("9515f36989e0cc1d", "2df141f11545481e", "5f1149231b2e7b52", "626a0236084cfbcc")),
    ([A._replace(weight=3), B._replace(weight=2), C], {"chunk_draws": 900}, None,
     ("2fb4ca92b876f88c", "8425937da77a2ae6", "5c933c3827a07f64", "5321c08826807499")),
    ([A, C], CONSTANT, None,
     ("9f5afd1949b20b5f", "ff21569cd53daf2c", "eaa3e91b974f2369", "191c262852dfb71b")),
    ([C], {**CONSTANT, "chunk_draws": 64}, None,
     ("ba25ca1dc96e7660", "cc592123745136f5", "4c071fc07aa884b6", "0c884eb5ded16c5a")),
    ([A], {**CONSTANT, "max_cuts": 15}, crop_lengths,
     ("ad79e6aa724ced61", "2e77bc67e70a4c53", "acdb17d97d71f057", "c941f45df07f8173")),
    ([A], {"max_cut_s": 3.0, "over_budget": "crop"}, crop_lengths,
     ("ad79e6aa724ced61", "7907d4237aa1f27c", "e5e799c18df52b02", "5321c08826807499")),
    ([A, B._replace(weight=2)], {**SHAPED, "over_budget": "crop"}, None,
     ("ab78204dea4a6671", "9701b0aebaae464f", "0a1c578e4f127f30", "4aed6013974f70e0")),
    ([A], {**SHAPED, "over_budget": "skip"}, None,
     ("ad79e6aa724ced61", "0e0a62b97e6ba28f", "eb5ac20820f3ab97", "4aed6013974f70e0")),
    ([C], {"micro_batches_per_step": 48}, None,
     ("ba25ca1dc96e7660", "3b084ffb0c89beec", "950103954b57b444", "fff8ae8206a4a61a")),
])  # fmt: skip
def test_plans_are_what_they_were(
    sources: list[Source], changes: dict[str, Any], lengths: Callable[..., np.ndarray] | None, expected: tuple[str, ...]
) -> None:
    """The fingerprint, the first 50 steps with the positions after them, the first of another segment, evaluation."""
    config = ShapedPlanConfig(**{"micro_batches_per_step": 4, "max_duration_s": 60.0, "num_buckets": 8, **changes})
    plan = Plan(sources, config, seed=5, lengths=lengths)
    steps = [[list(step.micro_batches), step.after] for step in islice(plan.steps(), 50)]
    other = list(next(plan.in_segment(1).steps()).micro_batches)
    evaluation = EvaluationPlan(sources[:1], config).batches(0, 3)
    assert (plan.fingerprint, digest(steps), digest(other), digest(evaluation)) == expected
