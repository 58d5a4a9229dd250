"""What a recognizer gets right: greedily at each validation, at the end also by beam search with an n-gram.

A model here is what gives `logits` (B, T, V) and `lengths` (B,) for a batch's `inputs` and `input_lengths`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.config.schema import section
from core.distributed import Ranks
from core.job.run import Run
from core.losses.ctc import ctc_loss
from core.recognition.decoding import BeamConfig, beam_search, greedy_search
from core.recognition.error_rates import ErrorCounts, bootstrap_interval, character_errors, total, word_errors
from core.recognition.fusion import FusionConfig, WeightedScorer
from core.rundir.files import PREDICTIONS
from core.rundir.whole_files import append_record
from core.text.vocabulary import CharacterVocabulary
from core.train.evaluate import evaluation_mode

GREEDY, NGRAM = "greedy", "ngram"
SHOWN = 3  # predictions of a validation that are kept for the report


@section
class DecodeConfig:
    """The decoding of held-out speech: greedily, and by a beam search with an n-gram of the training texts."""

    beam: BeamConfig = field(default_factory=BeamConfig)
    ngram: FusionConfig = field(default_factory=FusionConfig)


@dataclass
class Predictions:
    """The first predictions of a validation, written to predictions.jsonl by rank 0."""

    run: Run
    vocabulary: CharacterVocabulary
    step: int
    num_shown: int = field(default=0)

    def show(self, sample_id: str, *, reference: str, hypothesis: str) -> None:
        if self.num_shown < SHOWN and self.run.ranks.is_first:
            place = {"split": "valid", "step": self.step, "link": self.run.link, "token": self.run.token}
            texts = {"sample_id": sample_id, "reference": reference, "hypothesis": hypothesis}
            append_record(self.run.directory / PREDICTIONS, place | texts)
        self.num_shown += 1


@dataclass(frozen=True)
class Scored:
    """One utterance, as each decoding read it."""

    sample_id: str
    reference: str
    hypotheses: dict[str, str]


def count_errors(model: nn.Module, batch: Any, *, predictions: Predictions) -> Mapping[str, tuple[Any, Any]]:
    """Return valid_loss, valid_wer and valid_cer of one batch as (numerator, denominator), decoded greedily."""
    output = model(batch.inputs, batch.input_lengths)
    loss = ctc_loss(output.logits, output.lengths, batch.targets, batch.target_lengths).loss_sum
    hypotheses = greedy_search(output.logits.float().log_softmax(dim=-1), output.lengths)
    words, characters = [0.0, 0.0], [0.0, 0.0]
    for row, sample_id in enumerate(batch.sample_ids):
        reference = predictions.vocabulary.decode(batch.targets[row, : batch.target_lengths[row]].tolist())
        hypothesis = predictions.vocabulary.decode(hypotheses[row].ids)
        for sums, counts in (
            (words, word_errors(reference, hypothesis)),
            (characters, character_errors(reference, hypothesis)),
        ):
            sums[0] += counts.errors
            sums[1] += counts.reference
        predictions.show(sample_id, reference=reference, hypothesis=hypothesis)
    return {
        "valid_loss": (loss, float(batch.num_targets)),
        "valid_wer": (words[0], words[1]),
        "valid_cer": (characters[0], characters[1]),
    }


@torch.no_grad()  # not inference_mode: what ZeRO 3 gathers here it keeps for the training that follows
def recognize(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    references: Mapping[str, str],
    vocabulary: CharacterVocabulary,
    beam: BeamConfig,
    scorer: WeightedScorer | None,
    ranks: Ranks,
) -> list[Scored]:
    """Decode every utterance of this rank's `batches` both ways; return those of all ranks, on all alike.

    `references`: what is said in each, by its sample id.
    """
    mine = []
    with evaluation_mode(model):
        for batch in batches:
            batch = batch.to(ranks.device)
            output = model(batch.inputs, batch.input_lengths)
            log_probs, lengths = output.logits.float().log_softmax(dim=-1).cpu(), output.lengths.cpu()
            greedy = greedy_search(log_probs, lengths)
            beams = beam_search(log_probs, lengths, config=beam, scorer=scorer)
            for row, sample_id in enumerate(batch.sample_ids):
                best = {GREEDY: greedy[row].ids, NGRAM: beams[row][0].ids if beams[row] else []}
                texts = {name: vocabulary.decode(ids) for name, ids in best.items()}
                mine.append(Scored(sample_id, references[sample_id], texts))
    return [one for part in ranks.gather(mine)[:: ranks.tp_size] for one in part]


def summarize(scored: Sequence[Scored], *, split: str, seed: int) -> dict[str, float]:
    """Return WER and CER of both decodings with the WER's 95 % bootstrap interval, and the counts they rest on."""
    scores: dict[str, float] = {}
    for name in (GREEDY, NGRAM):
        words = [word_errors(one.reference, one.hypotheses[name]) for one in scored]
        characters: ErrorCounts = total([character_errors(one.reference, one.hypotheses[name]) for one in scored])
        low, high = bootstrap_interval(words, seed=seed)
        scores |= {f"{split}/wer_{name}": total(words).rate, f"{split}/cer_{name}": characters.rate}
        scores |= {f"{split}/wer_{name}_low": low, f"{split}/wer_{name}_high": high}
        scores |= {f"{split}/words": total(words).reference, f"{split}/characters": characters.reference}
    return scores | {f"{split}/utterances": len(scored)}


def record_hypotheses(directory: Path, scored: Sequence[Scored], *, split: str, step: int, token: int) -> None:
    """Add what was heard in each utterance to predictions.jsonl of a run."""
    for one in scored:
        facts = {"split": split, "step": step, "sample_id": one.sample_id, "reference": one.reference}
        append_record(
            directory / PREDICTIONS,
            facts | {"token": token, "hypothesis": one.hypotheses[GREEDY], NGRAM: one.hypotheses[NGRAM]},
        )
