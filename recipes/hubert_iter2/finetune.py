"""Fine-tune a pretrained HuBERT to spell what it hears, with CTC, and score it on held-out speech at the end.

./launch.sh recipes/hubert_iter2/finetune.sub pretrained.run=hubert.train2
torchrun --nproc-per-node 2 -m recipes.hubert_iter2.finetune --config recipes/hubert_iter2/finetune_tiny.yaml
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from torch import nn

from core.config.load import parse_args
from core.data.layer_drop import LayerDropStream
from core.data.stream import TrainStream, evaluation_batches
from core.job.run import Outcome, Run, run_job
from core.losses.ctc import ctc_loss
from core.losses.output import LossOutput
from core.models.flops import batch_flops
from core.models.hubert.flops import finetuning_flops
from core.optim.parameters import describe_parameters, freeze
from core.parallel.engine import build_engine
from core.recognition.recognize import Predictions, count_errors
from core.recognition.waveform_asr import WaveformCorpus
from core.samplers.plan import EvaluationPlan, Plan
from core.train.evaluate import evaluate
from core.train.loop import fit
from recipes.hubert_iter2.evaluate import recognize_test, write_results
from recipes.hubert_iter2.finetune_assembly import DEFAULT_CONFIG, Config, build_model, load_initial_weights

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_args(Config, argv=argv, prog="finetune", description=__doc__, default_config=DEFAULT_CONFIG)
    return run_job(config, partial(finetune, config))


def finetune(config: Config, run: Run) -> Outcome:
    """One link: data, model, engine, loop; the test split is scored once, after the last step."""
    corpus = WaveformCorpus.open(config.data, run.directory, ranks=run.ranks)
    size, lengths = len(corpus.vocabulary), config.model.output_lengths
    plan = Plan([source.planned for source in corpus.sources], config.plan, seed=run.seed)
    dataset = corpus.training_set(plan, output_lengths=lengths, num_channels=config.model.dim, seed=run.seed)
    stream = TrainStream(plan, dataset, config=config.loader, ranks=run.ranks, accept_data=config.run.accept_data)
    data = LayerDropStream(stream, config.model.num_layers, config.model.layer_drop, run.seed)
    for line in data.describe():
        logger.info(line)

    model = build_model(config, vocab_size=size, seed=run.seed)
    if config.pretrained is not None and run.ranks.from_first(run.checkpoints.newest_step()) is None:
        load_initial_weights(model, config.pretrained, normalize=config.data.normalize, ranks=run.ranks)
    freeze(model, config.optim.freeze)
    logger.info("%s", describe_parameters(model, freeze=config.optim.freeze, decay=config.optim.decay))
    engine = build_engine(model, config.parallel, optim=config.optim, ranks=run.ranks)

    def validate(step: int) -> Mapping[str, float] | None:
        predictions = Predictions(run, corpus.vocabulary, step=step)
        eval_plan = EvaluationPlan([source.planned for source in corpus.valid], config.plan)
        dataset = corpus.evaluation_set("valid", output_lengths=lengths)
        batches = evaluation_batches(eval_plan, dataset, config=config.loader, ranks=run.ranks)
        return evaluate(run, model, batches, partial(count_errors, predictions=predictions))

    @cache
    def of_frames(num_frames: int, *, trains_encoder: bool) -> float:
        trains_convs = not config.optim.freeze.patterns
        return finetuning_flops(
            config.model, num_frames=num_frames, vocab_size=size,
            trains_convs=trains_convs, trains_encoder=trains_encoder,
        )  # fmt: skip

    def flops(batch: Any) -> tuple[float, float]:
        is_thawed = model.hubert.encoder.layer_norm.weight.requires_grad
        num_frames = lengths(batch.input_lengths).tolist()
        counted = partial(of_frames, trains_encoder=is_thawed)
        return batch_flops(counted, num_frames=num_frames, padded_frames=lengths(batch.inputs.size(1)))

    outcome = fit(run, engine, data, loss_fn, validate, flops=flops)
    if outcome.finished:
        logger.info("scoring %d held-out utterances", len(corpus.test))
        scored = recognize_test(config, run.ranks, model, corpus)
        if run.ranks.is_first:
            write_results(run.directory, scored, config=config, step=outcome.step, token=run.token)
    return outcome


def loss_fn(model: nn.Module, batch: Any) -> LossOutput:
    """CTC, summed over the utterances that can be aligned."""
    output = model(
        batch.inputs, batch.input_lengths, is_masked=batch.is_masked, is_masked_channel=batch.is_masked_channel,
        dropped_layers=batch.dropped_layers,
    )  # fmt: skip
    return ctc_loss(output.logits, output.lengths, batch.targets, batch.target_lengths)


if __name__ == "__main__":
    sys.exit(main())
