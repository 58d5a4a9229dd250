"""Train speech and text to meet in one space, and see at the end whether held-out speech finds its text.

./launch.sh -n2 recipes/csa_stage1/tiny.sub
./run.sh recipes/csa_stage1 --config recipes/csa_stage1/tiny.yaml parallel.strategy=ddp
torchrun --nproc-per-node 2 -m recipes.csa_stage1.train --config recipes/csa_stage1/config.yaml
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from core.config.load import parse_args
from core.data.stream import TrainStream
from core.job.context import note_effective
from core.job.run import Outcome, Run, run_job
from core.optim.parameters import describe_parameters, freeze
from core.parallel.engine import build_engine
from core.parallel.settings import resolve_precision
from core.train.loop import Loss, fit
from recipes.csa_stage1.assembly import (
    DEFAULT_CONFIG,
    Config,
    attention_of,
    build_model,
    contrast,
    load_initial_weights,
    open_corpus,
    open_frozen_text,
)
from recipes.csa_stage1.score import score_test, validation_metrics

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_args(Config, argv=argv, prog="train", description=__doc__, default_config=DEFAULT_CONFIG)
    return run_job(config, partial(train, config))


def train(config: Config, run: Run) -> Outcome:
    """One link: data, model, engine, loop; the test split is searched once, after the last step."""
    corpus = open_corpus(config, run.directory, ranks=run.ranks)
    plan = corpus.training_plan(config.plan, seed=run.seed)
    dataset = corpus.training_set(seed=run.seed)
    data = TrainStream(plan, dataset, config=config.loader, ranks=run.ranks, accept_data=config.run.accept_data)
    for line in data.describe():
        logger.info(line)

    frozen = open_frozen_text(config, ranks=run.ranks)
    model = build_model(config, corpus, frozen)
    if run.ranks.from_first(run.checkpoints.newest_step()) is None:
        load_initial_weights(model, config, ranks=run.ranks)
    freeze(model, config.optim.freeze)
    logger.info("%s", describe_parameters(model, freeze=config.optim.freeze, decay=config.optim.decay))
    precision = resolve_precision(config.parallel.precision, run.ranks)
    if run.ranks.is_first:
        note_effective(run.directory, attention_of(model, frozen) | {"precision": precision})
    engine = build_engine(model, config.parallel, optim=config.optim, ranks=run.ranks)

    group = run.ranks.mesh.get_group("dp") if run.ranks.mesh is not None and run.ranks.dp_size > 1 else None

    def loss_fn(model: nn.Module, batch: Any) -> Loss:
        return contrast(model, batch, config=config.loss, frozen=frozen, group=group)

    def validate(step: int) -> Mapping[str, float] | None:
        return validation_metrics(config, run, model, frozen, corpus)

    outcome = fit(run, engine, data, loss_fn, validate)
    return score_test(config, run, model, frozen, corpus, outcome) if outcome.finished else outcome


if __name__ == "__main__":
    sys.exit(main())
