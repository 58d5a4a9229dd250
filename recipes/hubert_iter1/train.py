"""Train HuBERT on clusters of MFCC, and tell at the end how good its layers are as units of speech.

./launch.sh -n4 recipes/hubert_iter1/job.sub
./run.sh recipes/hubert_iter1 --config recipes/hubert_iter1/tiny.yaml optim.lr=1e-3
torchrun --nproc-per-node 2 -m recipes.hubert_iter1.train --config recipes/hubert_iter1/config.yaml
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from core.config.load import parse_args
from core.data.layer_drop import LayerDropStream
from core.data.stream import TrainStream, evaluation_batches
from core.job.run import Outcome, Run, run_job
from core.models.flops import batch_flops
from core.models.hubert.flops import training_flops
from core.models.hubert.model import HubertPretraining
from core.optim.parameters import describe_parameters, freeze
from core.parallel.engine import build_engine
from core.rundir.files import CLUSTERS, SCORES
from core.rundir.whole_files import write_json
from core.samplers.plan import EvaluationPlan, Plan
from core.seeding import seed_everything
from core.train.evaluate import evaluate
from core.train.loop import fit
from core.units.cluster_report import draw_report
from core.units.frame_features import FrameFeatures, MfccFeatures
from core.units.labelled_speech import LabelledSpeech, most_frequent_label
from core.units.masked_prediction import loss_fn, score
from core.units.unit_quality import HeldOut, compare
from recipes.hubert_iter1.assembly import DEFAULT_CONFIG, Config, clustered, layers_of

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_args(Config, argv=argv, prog="train", description=__doc__, default_config=DEFAULT_CONFIG)
    return run_job(config, partial(train, config))


def train(config: Config, run: Run) -> Outcome:
    """One link: data, model, engine, loop; the layers are compared once, after the last step."""
    corpus, features = LabelledSpeech.open(config.data), clustered(config)
    stores = corpus.stores(num_clusters=config.model.num_classes, features=features.name, layer=features.layer)
    plan = Plan([source.planned for source in corpus.sources], config.plan, seed=run.seed)
    dataset = corpus.training_set(stores, grid=config.grid, seed=run.seed, shapes=config.plan.shapes)
    stream = TrainStream(plan, dataset, config=config.loader, ranks=run.ranks, accept_data=config.run.accept_data)
    data = LayerDropStream(stream, config.model.num_layers, config.model.layer_drop, run.seed)
    for line in data.describe():
        logger.info(line)

    seed_everything(run.seed, "model")
    model = HubertPretraining(config.model)
    freeze(model, config.optim.freeze)
    logger.info("%s", describe_parameters(model, freeze=config.optim.freeze, decay=config.optim.decay))
    engine = build_engine(model, config.parallel, optim=config.optim, ranks=run.ranks)

    def validate(step: int) -> Mapping[str, float] | None:
        dataset = corpus.validation_set(stores, grid=config.grid, seed=run.seed, shapes=config.plan.shapes)
        eval_plan = EvaluationPlan([source.planned for source in corpus.valid], config.plan)
        batches = evaluation_batches(eval_plan, dataset, config=config.loader, ranks=run.ranks)
        scored = partial(score, most_frequent=most_frequent_label(stores), config=config.loss)
        return evaluate(run, model, batches, scored)

    of_frames = cache(lambda num_frames: training_flops(config.model, num_frames=num_frames))

    def flops(batch: Any) -> tuple[float, float]:
        return batch_flops(of_frames, num_frames=batch.num_frames.tolist(), padded_frames=batch.labels.size(1))

    loss = partial(loss_fn, config=config.loss)
    outcome = fit(run, engine, data, loss, validate, flops=flops)
    return compare_layers(config, run, outcome) if outcome.finished else outcome


def compare_layers(config: Config, run: Run, outcome: Outcome) -> Outcome:
    """Layers of the trained model beside MFCC as units of held-out speech: scores.json and a picture."""
    held_out = HeldOut.open(config.quality, grid=config.grid, seed=run.seed)
    features: dict[str, FrameFeatures] = {"mfcc": MfccFeatures(config.features.convention)}
    for layer in layers_of(run.directory, config.quality.layers, ranks=run.ranks):
        features[f"layer_{layer.layer}"] = layer
    found = compare(features, held_out, rivals=["mfcc"], ranks=run.ranks)
    logger.info("%s", found.describe())
    if run.ranks.is_first:
        write_json(run.directory / SCORES, found.scores() | {"step": outcome.step})
        last = max(config.quality.layers)
        draw_report(found.reports[f"layer_{last}"], run.directory / CLUSTERS)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
