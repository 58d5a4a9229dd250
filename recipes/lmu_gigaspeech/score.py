"""Score a run on its held-out test split: greedy, and by beam search with an n-gram of the training texts.

    python -m recipes.lmu_gigaspeech.score --config runs/lmu_demo/config.yaml decode.ngram.word_weight=0.7

Uses the newest checkpoint of `run.name` and prints the scores; the training run itself writes them to scores.json.
"""

import logging
import sys
from collections.abc import Sequence

from torch import nn

from core.config.load import parse_args
from core.data.stream import evaluation_batches
from core.distributed import Ranks, joined
from core.job.errors import exit_on_error
from core.job.run import Outcome, Run
from core.recognition.asr_corpus import texts_of, training_cuts
from core.recognition.fusion import build_scorer
from core.recognition.recognize import Scored, recognize, record_hypotheses, summarize
from core.rundir.environment import runs_root
from core.rundir.files import SCORES
from core.rundir.whole_files import write_json
from core.samplers.plan import EvaluationPlan, Source
from core.train.trained import load_trained
from recipes.lmu_gigaspeech.assembly import DEFAULT_CONFIG, Config, Corpus, build_model

logger = logging.getLogger(__name__)

SPLIT = "test"


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_args(Config, argv=argv, prog="score", description=__doc__, default_config=DEFAULT_CONFIG)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    directory = runs_root() / config.run.name
    with joined(device=config.run.device) as ranks, exit_on_error():
        corpus = Corpus.open(config, directory, ranks=ranks)
        model = build_model(config, vocab_size=len(corpus.vocabulary), seed=config.run.seed)
        load_trained(model, directory, ranks=ranks, precision=config.parallel.precision)
        scored = recognize_test(config, ranks, model, corpus)
        if ranks.is_first:
            for name, value in summarize(scored, split=SPLIT, seed=config.run.seed).items():
                print(f"{name:24} {value:.4f}")
    return 0


def score_test(config: Config, run: Run, model: nn.Module, corpus: Corpus, outcome: Outcome) -> Outcome:
    """Decode the test split with the trained model and write scores.json; once, after the last step."""
    logger.info("scoring %d held-out utterances", len(corpus.test))
    scored = recognize_test(config, run.ranks, model, corpus)
    if run.ranks.is_first:
        scores = summarize(scored, split=SPLIT, seed=run.seed)
        write_json(run.directory / SCORES, scores | {"step": outcome.step})
        record_hypotheses(run.directory, scored, split=SPLIT, step=outcome.step, token=run.token)
    return outcome


def recognize_test(config: Config, ranks: Ranks, model: nn.Module, corpus: Corpus) -> list[Scored]:
    """Every test utterance once, on all ranks alike."""
    plan = EvaluationPlan([Source(SPLIT, corpus.test.durations_s)], config.plan)
    return recognize(
        model,
        evaluation_batches(plan, corpus.evaluation_set("test"), config=config.loader, ranks=ranks),
        references=corpus.references,
        vocabulary=corpus.vocabulary,
        beam=config.decode.beam,
        scorer=build_scorer(
            config.decode.ngram, vocabulary=corpus.vocabulary, texts=texts_of(training_cuts(corpus.train))
        ),
        ranks=ranks,
    )


if __name__ == "__main__":
    sys.exit(main())
