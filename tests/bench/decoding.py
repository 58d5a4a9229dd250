"""Speed of decoding: greedy and beam search against the loops they replace, and what a language model costs.

    python -m tests.bench.decoding [--rounds 3] [--utterances 4]

The rivals read the device once a symbol (`.item()`), and their beam extends every hypothesis by every symbol without
merging equal prefixes, as PyTorch LMU-ASR does. Prints markdown. All cases run interleaved in this process; a ratio is
the median (min to max) over rounds of two CPU times taken one after the other.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from core.recognition.decoding import BeamConfig, beam_search, greedy_search
from core.recognition.fusion import FusionConfig, build_scorer
from core.text.vocabulary import BLANK_ID, CharacterVocabulary

TEXTS = [
    "please enter the extension of the person you are calling followed by the pound key",
    "to listen to the next message press six to delete this message press seven",
    "you are currently the only person in this conference",
    "the number you have dialed is not in service please check the number and try again",
]
BEAM = 50
Case = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--utterances", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    vocabulary = CharacterVocabulary.of_texts(["abcdefghijklmnopqrstuvwxyz'"])
    log_probs, lengths = spoken(vocabulary, utterances=arguments.utterances)
    config = BeamConfig(beam_size=BEAM)
    scorer = build_scorer(FusionConfig(), vocabulary=vocabulary, texts=TEXTS)

    def beam() -> object:
        return beam_search(log_probs, lengths, config=config)

    def beam_with_words() -> object:
        return beam_search(log_probs, lengths, config=config, scorer=scorer)

    def greedy_by_item() -> object:
        return rival_greedy(log_probs, lengths)

    def beam_by_item() -> object:
        return rival_beam(log_probs, lengths)

    cases: list[tuple[str, Case, Case]] = [
        ("greedy", lambda: greedy_search(log_probs, lengths), greedy_by_item),
        (f"beam {BEAM}", beam, beam_by_item),
        (f"beam {BEAM} + word 3-gram (the rival has none)", beam_with_words, beam_by_item),
    ]
    mean_frames = float(lengths.double().mean())
    print(f"{arguments.utterances} utterances, {mean_frames:.0f} frames each on average, {len(vocabulary)} symbols\n")
    print("decoding | utterances/s | rival | ratio (min to max)\n--- | --- | --- | ---")
    for name, ours, rival in cases:
        times = [(cpu_seconds(ours), cpu_seconds(rival)) for _ in range(arguments.rounds + 1)][1:]
        own, other = (arguments.utterances / statistics.median(column) for column in zip(*times, strict=True))
        ratios = sorted(theirs / mine for mine, theirs in times)
        spread = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        print(f"{name} | {own:.1f} | {other:.1f} | {spread}")


def spoken(vocabulary: CharacterVocabulary, *, utterances: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, T, V) and lengths (B,) as of a mediocre model: TEXTS with noise."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(utterances):
        path = []
        for symbol in vocabulary.encode(TEXTS[number % len(TEXTS)]):
            path += [symbol] + [BLANK_ID] * int(random.integers(1, 3))
        logits = 1.2 * random.standard_normal((len(path), len(vocabulary)))
        logits[np.arange(len(path)), path] += 5.0
        rows.append(torch.from_numpy(logits).float().log_softmax(-1))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def rival_greedy(log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
    decoded = []
    for row, length in zip(log_probs, lengths, strict=True):
        ids, previous = [], BLANK_ID
        for t in range(length.item()):
            symbol = row[t].argmax().item()
            if symbol != BLANK_ID and symbol != previous:
                ids.append(symbol)
            previous = symbol
        decoded.append(ids)
    return decoded


def rival_beam(log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
    decoded = []
    for row, length in zip(log_probs, lengths, strict=True):
        beam: list[tuple[list[int], float]] = [([], 0.0)]
        for t in range(length.item()):
            candidates = []
            for ids, score in beam:
                for symbol in range(row.shape[1]):
                    added = row[t, symbol].item()
                    is_new = symbol != BLANK_ID and (not ids or ids[-1] != symbol)
                    candidates.append(([*ids, symbol] if is_new else ids, score + added))
            beam = sorted(candidates, key=lambda candidate: candidate[1], reverse=True)[:BEAM]
        decoded.append(beam[0][0])
    return decoded


def cpu_seconds(case: Case) -> float:
    start = time.process_time()
    case()
    return time.process_time() - start


if __name__ == "__main__":
    main()
