"""Score a run on its held-out test split: greedy, and by beam search with an n-gram of the training texts.

    python -m recipes.lmu_gigaspeech.score --config runs/lmu_demo/config.yaml decode.ngram.word_weight=0.7

Uses the newest checkpoint of `run.name` and prints the scores; the training run itself writes them to scores.json.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from core.config import parse_args
from core.data.asr_corpus import texts_of
from core.data.stream import evaluation_batches
from core.decoding import beam_search, greedy_search
from core.distributed import Ranks, joined
from core.fusion import WeightedScorer, build_scorer
from core.runfiles import SCORES, append_record, runs_root, write_json
from core.samplers.plan import EvaluationPlan, Source
from core.scoring import ErrorCounts, bootstrap_interval, character_errors, total, word_errors
from core.train.report import PREDICTIONS
from core.train.run import Outcome, Run
from recipes.lmu_gigaspeech.assembly import DEFAULT_CONFIG, Config, Corpus, training_cuts
from recipes.lmu_gigaspeech.trained import load_trained

logger = logging.getLogger(__name__)

NGRAM = "ngram"
GREEDY = "greedy"


@dataclass(frozen=True)
class Scored:
    """One test utterance, as each decoding read it."""

    sample_id: str
    reference: str
    hypotheses: dict[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_args(Config, argv=argv, prog="score", description=__doc__, default_config=DEFAULT_CONFIG)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    directory = runs_root() / config.run.name
    with joined(device=config.run.device) as ranks:
        corpus = Corpus.open(config, directory, ranks=ranks)
        model = load_trained(config, directory, vocabulary=corpus.vocabulary, ranks=ranks)
        scored = transcribe_split(config, ranks, model, corpus)
        if ranks.is_first:
            for name, value in summarize(scored, seed=config.run.seed).items():
                print(f"{name:24} {value:.4f}")
    return 0


def score_test(config: Config, run: Run, model: nn.Module, corpus: Corpus, outcome: Outcome) -> Outcome:
    """Decode the test split with the trained model and write scores.json; once, after the last step."""
    logger.info("scoring %d held-out utterances", len(corpus.test))
    scored = transcribe_split(config, run.ranks, model, corpus)
    if run.ranks.is_first:
        scores = summarize(scored, seed=run.seed)
        write_json(run.directory / SCORES, scores | {"step": outcome.step})
        for one in scored:
            facts = {"split": "test", "step": outcome.step, "sample_id": one.sample_id, "reference": one.reference}
            append_record(
                run.directory / PREDICTIONS,
                facts | {"token": run.token, "hypothesis": one.hypotheses[GREEDY], NGRAM: one.hypotheses[NGRAM]},
            )
    return outcome


@torch.inference_mode()
def transcribe_split(config: Config, ranks: Ranks, model: nn.Module, corpus: Corpus) -> list[Scored]:
    """Every test utterance once, on all ranks alike."""
    model.eval()
    scorer = build_scorer(
        config.decode.ngram, vocabulary=corpus.vocabulary, texts=texts_of(training_cuts(corpus.train))
    )
    plan = EvaluationPlan(Source("test", corpus.test.durations_s), config.plan)
    batches = evaluation_batches(plan, corpus.evaluation_set("test"), config=config.loader, ranks=ranks)
    mine = [one for batch in batches for one in _decode(config, model, batch.to(ranks.device), corpus, scorer)]
    return [one for part in ranks.gather(mine)[:: ranks.tp_size] for one in part]


def _decode(
    config: Config, model: nn.Module, batch: Any, corpus: Corpus, scorer: WeightedScorer | None
) -> list[Scored]:
    logits, lengths, _ = model(batch.inputs, batch.input_lengths)
    log_probs = logits.float().log_softmax(dim=-1).cpu()
    greedy = greedy_search(log_probs, lengths.cpu())
    beams = beam_search(log_probs, lengths.cpu(), config=config.decode.beam, scorer=scorer)
    found = []
    for row, sample_id in enumerate(batch.sample_ids):
        reference = corpus.references[sample_id]
        best = beams[row][0].ids if beams[row] else []
        hypotheses = {GREEDY: greedy[row].ids, NGRAM: best}
        texts = {name: corpus.vocabulary.decode(ids) for name, ids in hypotheses.items()}
        found.append(Scored(sample_id, reference, texts))
    return found


def summarize(scored: Sequence[Scored], *, seed: int) -> dict[str, float]:
    """WER and CER of both decodings with the WER's 95 % bootstrap interval, and the counts they rest on."""
    scores: dict[str, float] = {}
    for name in (GREEDY, NGRAM):
        words = [word_errors(one.reference, one.hypotheses[name]) for one in scored]
        characters: ErrorCounts = total([character_errors(one.reference, one.hypotheses[name]) for one in scored])
        low, high = bootstrap_interval(words, seed=seed)
        scores |= {f"test/wer_{name}": total(words).rate, f"test/cer_{name}": characters.rate}
        scores |= {f"test/wer_{name}_low": low, f"test/wer_{name}_high": high}
        scores |= {"test/words": total(words).reference, "test/characters": characters.reference}
    return scores | {"test/utterances": len(scored)}


if __name__ == "__main__":
    sys.exit(main())
