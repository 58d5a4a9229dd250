"""Score a fine-tuned run on a manifest: greedy (Viterbi), and by prefix beam search with an n-gram.

    python -m recipes.hubert_iter2.evaluate --config recipes/hubert_iter2/finetune_tiny.yaml decode.beam.beam_size=100
    torchrun --nproc-per-node 8 -m recipes.hubert_iter2.evaluate data.test=data/manifests/librispeech_test-clean.jsonl

Uses the newest checkpoint of `run.name`. What it finds is printed and added to scores.json, under the manifest's name,
and every hypothesis to predictions.jsonl. Fine-tuning ends with the same for `data.test`.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from core.config.load import parse_args
from core.data.stream import evaluation_batches
from core.distributed import Ranks, joined
from core.job.errors import exit_on_error
from core.recognition.fusion import build_scorer
from core.recognition.recognize import Scored, recognize, record_hypotheses, summarize
from core.recognition.waveform_asr import WaveformCorpus
from core.rundir.environment import runs_root
from core.rundir.files import SCORES, VOCABULARY
from core.rundir.whole_files import read_json, write_json
from core.samplers.plan import EvaluationPlan, Source
from core.train.trained import load_trained
from recipes.hubert_iter2.finetune_assembly import DEFAULT_CONFIG, Config, build_model


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_args(Config, argv=argv, prog="evaluate", description=__doc__, default_config=DEFAULT_CONFIG)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    directory = runs_root() / config.run.name
    with joined(device=config.run.device) as ranks, exit_on_error():
        if not (directory / VOCABULARY).exists():
            raise ValueError(f"{directory} has no {VOCABULARY}: fine-tune the run first, or name another by run.name")
        corpus = WaveformCorpus.open(config.data, directory, ranks=ranks)
        model = build_model(config, vocab_size=len(corpus.vocabulary), seed=config.run.seed)
        step = load_trained(model, directory, ranks=ranks, precision=config.parallel.precision)
        scored = recognize_test(config, ranks, model, corpus)
        if ranks.is_first:
            for name, value in write_results(directory, scored, config=config, step=step, token=0).items():
                print(f"{name:40} {value:.4f}")
    return 0


def recognize_test(config: Config, ranks: Ranks, model: nn.Module, corpus: WaveformCorpus) -> list[Scored]:
    """Every test utterance once, on all ranks alike."""
    plan = EvaluationPlan([Source("test", corpus.test.durations_s)], config.plan)
    dataset = corpus.evaluation_set("test", output_lengths=config.model.output_lengths)
    return recognize(
        model,
        evaluation_batches(plan, dataset, config=config.loader, ranks=ranks),
        references=corpus.references,
        vocabulary=corpus.vocabulary,
        beam=config.decode.beam,
        scorer=build_scorer(config.decode.ngram, vocabulary=corpus.vocabulary, texts=corpus.texts),
        ranks=ranks,
    )


def write_results(
    directory: Path, scored: Sequence[Scored], *, config: Config, step: int, token: int
) -> dict[str, float]:
    """The scores of `data.test`. Those of other manifests stay in scores.json as long as they are of the same step."""
    split = Path(config.data.test).stem
    scores = summarize(scored, split=split, seed=config.run.seed)
    before = read_json(directory / SCORES) if (directory / SCORES).exists() else {}
    kept = before if before.get("step") == step else {}
    write_json(directory / SCORES, kept | scores | {"step": step})
    record_hypotheses(directory, scored, split=split, step=step, token=token)
    return scores


if __name__ == "__main__":
    sys.exit(main())
