"""Search held-out texts by their speech, and speech by its text: every clip of a split against all others.

    python -m recipes.csa_stage1.score --config recipes/csa_stage1/tiny.yaml

Uses the newest checkpoint of `run.name` and prints the scores; the training run itself writes them to scores.json.
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from core.config.load import parse_args
from core.data.stream import evaluation_batches
from core.distributed import Ranks, joined
from core.job.errors import exit_on_error
from core.job.run import Outcome, Run
from core.losses.contrastive import MAX_LOG_SCALE
from core.models.pretrained.text import FrozenText
from core.rundir.environment import runs_root
from core.rundir.files import NEIGHBOURS, SCORES, SIMILARITIES
from core.rundir.whole_files import append_record, write_json
from core.train.evaluate import evaluation_mode
from core.train.trained import load_trained
from recipes.csa_stage1.assembly import (
    DEFAULT_CONFIG,
    Config,
    GalleryConfig,
    build_model,
    embed,
    open_corpus,
    open_frozen_text,
    text_of,
)
from recipes.csa_stage1.paired_corpus import PairedCorpus, Split
from recipes.csa_stage1.retrieval import (
    LengthModel,
    bootstrap_interval,
    chance_scores,
    find_places,
    gallery_loss,
    gather_in_order,
    nearest_in_length,
    place_scores,
)
from recipes.csa_stage1.similarity_picture import draw_similarities

logger = logging.getLogger(__name__)

DIRECTIONS = ("speech_to_text", "text_to_speech")


@dataclass(frozen=True)
class Gallery:
    """The held-out pairs in the order of their sample ids, so that it is the same on any number of ranks."""

    sample_ids: list[str]
    texts: list[str]
    speech: np.ndarray  # (N, D), of length 1
    text: np.ndarray  # (N, D), of length 1
    keys: np.ndarray  # (N,), equal for equal texts
    num_samples: np.ndarray  # (N,)
    scale: float  # of the trained loss

    @property
    def num_chars(self) -> np.ndarray:
        return np.array([len(text) for text in self.texts])

    def places(self, direction: str, *, candidates: np.ndarray | None = None) -> np.ndarray:
        """(N,): the place of each query's own."""
        queries, gallery = (self.speech, self.text) if direction == "speech_to_text" else (self.text, self.speech)
        return find_places(queries, gallery, keys=self.keys, candidates=candidates)


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_args(Config, argv=argv, prog="score", description=__doc__, default_config=DEFAULT_CONFIG)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    directory = runs_root() / config.run.name
    with joined(device=config.run.device) as ranks, exit_on_error():
        corpus = open_corpus(config, directory, ranks=ranks)
        frozen = open_frozen_text(config, ranks=ranks)
        model = build_model(config, corpus, frozen)
        load_trained(model, directory, ranks=ranks, precision=config.parallel.precision)
        gallery = collect(batches_of(config, corpus, "test", ranks=ranks), model, frozen, ranks=ranks)
        assert gallery is not None
        if ranks.is_first:
            for name, value in summarize(gallery, corpus, config).items():
                print(f"{name:44} {value:.4f}")
    return 0


def score_test(
    config: Config, run: Run, model: nn.Module, frozen: FrozenText | None, corpus: PairedCorpus, outcome: Outcome
) -> Outcome:
    """Search the test split with the trained model: scores.json, a picture, neighbours; once, after the last step."""
    logger.info("searching %d held-out clips", len(corpus.test))
    gallery = collect(batches_of(config, corpus, "test", ranks=run.ranks), model, frozen, ranks=run.ranks)
    assert gallery is not None
    if run.ranks.is_first:
        scores = summarize(gallery, corpus, config)
        logger.info("%s", describe(scores))
        write_json(run.directory / SCORES, scores | {"step": outcome.step})
        draw_similarities(gallery.speech @ gallery.text.T, gallery.num_samples, run.directory / SIMILARITIES)
        for record in neighbours(gallery, config.gallery):
            append_record(run.directory / NEIGHBOURS, {"step": outcome.step, "token": run.token, **record})
    return outcome


def validation_metrics(
    config: Config, run: Run, model: nn.Module, frozen: FrozenText | None, corpus: PairedCorpus
) -> Mapping[str, float] | None:
    """Loss and retrieval over all held-out pairs together; None when a stop came in between."""
    gallery = collect(batches_of(config, corpus, "valid", ranks=run.ranks), model, frozen, ranks=run.ranks, run=run)
    if gallery is None:
        return None
    found = {"valid_loss": gallery_loss(gallery.speech, gallery.text, scale=gallery.scale, keys=gallery.keys)}
    for direction in DIRECTIONS:
        scores = place_scores(gallery.places(direction))
        found |= {f"valid_{direction}_{name}": scores[name] for name in ("r1", "r10", "mrr")}
    return found


def batches_of(config: Config, corpus: PairedCorpus, split: Split, *, ranks: Ranks) -> Iterable[Any]:
    plan = corpus.evaluation_plan(split, config.plan, seed=config.run.seed)
    dataset = corpus.evaluation_set(split, seed=config.run.seed)
    return evaluation_batches(plan, dataset, config=config.loader, ranks=ranks)


@torch.no_grad()  # not inference_mode: what ZeRO 3 gathers here it keeps for the training that follows
def collect(
    batches: Iterable[Any], model: nn.Module, frozen: FrozenText | None, *, ranks: Ranks, run: Run | None = None
) -> Gallery | None:
    """Return all pairs' embeddings, on all ranks alike; None when `run` wants to stop. ValueError for no pairs."""
    sample_ids: list[str] = []
    texts: list[str] = []
    columns: dict[str, list[np.ndarray]] = {"speech": [], "text": [], "keys": [], "num_samples": []}
    scale = 1.0
    with evaluation_mode(model):
        for batch in batches:
            if run is not None:
                run.phases.enter("validate")
                if ranks.any(run.stop.reason is not None):
                    return None
            batch = batch.to(ranks.device)
            output = embed(model, batch, text_of(batch, frozen))
            scale = float(output.log_scale.clamp(max=MAX_LOG_SCALE).exp())
            rows = {"speech": output.speech, "text": output.text}
            rows |= {"keys": batch.text_keys, "num_samples": batch.num_samples}
            for name, values in rows.items():
                columns[name].append(values[: batch.num_targets].cpu().numpy())
            sample_ids += batch.sample_ids
            texts += batch.texts
    if run is not None:
        run.phases.enter("outside")
    said_in = {one: text for share in ranks.gather(list(zip(sample_ids, texts, strict=True))) for one, text in share}
    order = {sample_id: place for place, sample_id in enumerate(sorted(said_in))}
    positions = np.array([order[sample_id] for sample_id in sample_ids], dtype=np.int64)
    whole = {
        name: gather_in_order(ranks, positions, np.concatenate(parts), num_rows=len(order))
        for name, parts in columns.items()
    }
    return Gallery(
        sample_ids=list(order),
        texts=[said_in[sample_id] for sample_id in order],
        speech=whole["speech"],
        text=whole["text"],
        keys=whole["keys"],
        num_samples=whole["num_samples"],
        scale=scale,
    )


def summarize(gallery: Gallery, corpus: PairedCorpus, config: Config, *, split: Split = "test") -> dict[str, float]:
    """Retrieval both ways with 95 % bootstrap intervals, beside chance and what the length alone finds; then the same
    where each query is compared with those nearest to it in length."""
    durations_s = gallery.num_samples / config.data.pairs.sample_rate_hz
    lengths = LengthModel.fit(*corpus.training_lengths())
    num_texts = len(set(gallery.keys.tolist()))
    scores: dict[str, float] = {f"{split}/pairs": len(gallery.texts), f"{split}/texts": num_texts}
    matched = nearest_in_length(durations_s, min(config.gallery.matched, num_texts - 1), keys=gallery.keys)
    for prefix, candidates in (("", None), ("matched_", matched)):
        size = num_texts if candidates is None else candidates.shape[1] + 1
        scores[f"{split}/{prefix}chance_r1"] = chance_scores(size)["r1"]
        for direction in DIRECTIONS:
            places = gallery.places(direction, candidates=candidates)
            found = place_scores(places)
            low, high = bootstrap_interval(places <= 1, seed=config.run.seed)
            found |= {"r1_low": low, "r1_high": high}
            found["length_only_r1"] = float(
                lengths.recall(
                    durations_s, gallery.num_chars, at=1, of=direction.partition("_")[0], keys=gallery.keys,
                    candidates=candidates,
                ).mean()
            )  # fmt: skip
            scores |= {f"{split}/{prefix}{direction}_{name}": value for name, value in found.items()}
    return scores


def describe(scores: Mapping[str, float], *, split: Split = "test") -> str:
    """R@1 beside its baselines, a line for each direction and gallery."""
    lines = [f"{scores[f'{split}/pairs']:.0f} pairs of {scores[f'{split}/texts']:.0f} texts"]
    for prefix, gallery in (("", "all"), ("matched_", "those of the nearest lengths")):
        for direction in DIRECTIONS:
            name = f"{split}/{prefix}{direction}_"
            lines.append(
                f"{direction.replace('_', ' ')} among {gallery}: R@1 {scores[name + 'r1']:.3f} "
                f"({scores[name + 'r1_low']:.3f} to {scores[name + 'r1_high']:.3f}), MRR {scores[name + 'mrr']:.3f}; "
                f"by length alone {scores[name + 'length_only_r1']:.3f}, "
                f"by chance {scores[f'{split}/{prefix}chance_r1']:.3f}"
            )
    return "\n".join(lines)


def neighbours(gallery: Gallery, config: GalleryConfig) -> Iterator[dict[str, Any]]:
    """Of some clips, and of their texts, what lies nearest on the other side, with the cosines; nearest first."""
    num = len(gallery.texts)
    cosines = gallery.speech.astype(np.float64) @ gallery.text.astype(np.float64).T  # (N, N)
    for direction, similarities in zip(DIRECTIONS, (cosines, cosines.T), strict=True):
        for row in np.linspace(0, num - 1, min(config.shown, num)).astype(int):
            nearest = (-similarities[row]).argsort(kind="stable")[: config.neighbours]
            yield {
                "direction": direction,
                "sample_id": gallery.sample_ids[row],
                "text": gallery.texts[row],
                "cosine": float(similarities[row, row]),
                "neighbours": [
                    {"sample_id": gallery.sample_ids[one], "text": gallery.texts[one],
                     "cosine": float(similarities[row, one])} for one in nearest.tolist()
                ],
            }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
