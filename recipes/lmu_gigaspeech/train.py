"""Train a Legendre Memory Unit recognizer with CTC, and score it on held-out speech at the end.

./launch.sh -n2 recipes/lmu_gigaspeech/demo.sub
./run.sh recipes/lmu_gigaspeech --config recipes/lmu_gigaspeech/demo.yaml optim.lr=1e-3
torchrun --nproc-per-node 2 -m recipes.lmu_gigaspeech.train --config recipes/lmu_gigaspeech/config.yaml
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from torch import nn

from core.config.load import parse_args
from core.data.stream import evaluation_batches
from core.job.run import Outcome, Run, run_job
from core.losses.ctc import intermediate_ctc_loss
from core.losses.output import LossOutput
from core.models.flops import batch_flops, ctc_training
from core.optim.parameters import describe_parameters, freeze
from core.parallel.engine import build_engine
from core.recognition.recognize import Predictions, count_errors
from core.samplers.plan import EvaluationPlan
from core.train.evaluate import evaluate
from core.train.loop import fit
from recipes.lmu_gigaspeech.assembly import DEFAULT_CONFIG, Config, Corpus, build_model, build_stream
from recipes.lmu_gigaspeech.score import score_test

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_args(Config, argv=argv, prog="train", description=__doc__, default_config=DEFAULT_CONFIG)
    return run_job(config, partial(train, config))


def train(config: Config, run: Run) -> Outcome:
    """One link: data, model, engine, loop; the test split is scored once, after the last step."""
    corpus = Corpus.open(config, run.directory, ranks=run.ranks)
    data = build_stream(config, run, corpus)
    for line in data.describe():
        logger.info(line)

    model = build_model(config, vocab_size=len(corpus.vocabulary), seed=run.seed)
    freeze(model, config.optim.freeze)
    logger.info("%s", describe_parameters(model, freeze=config.optim.freeze, decay=config.optim.decay))
    engine = build_engine(model, config.parallel, optim=config.optim, ranks=run.ranks)

    def validate(step: int) -> Mapping[str, float] | None:
        predictions = Predictions(run, corpus.vocabulary, step=step)
        dataset = corpus.evaluation_set("valid")
        eval_plan = EvaluationPlan([source.planned for source in corpus.valid], config.plan)
        batches = evaluation_batches(eval_plan, dataset, config=config.loader, ranks=run.ranks)
        return evaluate(run, model, batches, partial(count_errors, predictions=predictions))

    size, num_heads = len(corpus.vocabulary), 1 + len(config.model.head.intermediate_blocks)
    of_frames = cache(partial(ctc_training, config.model.encoder, vocab_size=size, num_heads=num_heads))

    def flops(batch: Any) -> tuple[float, float]:
        return batch_flops(of_frames, num_frames=batch.input_lengths.tolist(), padded_frames=batch.inputs.size(1))

    loss = partial(loss_fn, intermediate_weight=config.model.head.intermediate_weight)
    outcome = fit(run, engine, data, loss, validate, flops=flops)
    return score_test(config, run, model, corpus, outcome) if outcome.finished else outcome


def loss_fn(model: nn.Module, batch: Any, *, intermediate_weight: float) -> LossOutput:
    """CTC, summed over the characters of the utterances that can be aligned."""
    logits, lengths, intermediate = model(batch.inputs, batch.input_lengths)
    return intermediate_ctc_loss(
        logits, intermediate, lengths, batch.targets, batch.target_lengths, weight=intermediate_weight
    )


if __name__ == "__main__":
    sys.exit(main())
