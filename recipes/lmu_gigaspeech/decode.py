"""From a batch to error counts: greedy for validation, greedy and beam search with an n-gram for the test."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from core.decoding import greedy_search
from core.losses.ctc import ctc_loss
from core.runfiles import append_record
from core.scoring import character_errors, word_errors
from core.text import CharacterVocabulary
from core.train.report import PREDICTIONS
from core.train.run import Run

SHOWN = 3  # predictions of a validation that are kept for the report


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


def count_errors(model: nn.Module, batch: Any, *, predictions: Predictions) -> Mapping[str, tuple[Any, Any]]:
    """valid_loss, valid_wer and valid_cer of one batch as (numerator, denominator), decoded greedily."""
    logits, lengths, _ = model(batch.inputs, batch.input_lengths)
    loss = ctc_loss(logits, lengths, batch.targets, batch.target_lengths).loss_sum
    hypotheses = greedy_search(logits.float().log_softmax(dim=-1), lengths)
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
