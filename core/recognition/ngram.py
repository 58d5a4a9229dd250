"""Back-off n-gram language models over words or characters: scored, and kept as ARPA files.

Probabilities are natural logarithms here and base 10 in the files.
"""

import gzip
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from core.rundir.whole_files import write_whole
from core.text.vocabulary import SPACE

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"

State = tuple[int, ...]  # the ids of the last tokens, as many as matter
LN10 = math.log(10)
NEVER = -99 * LN10  # ARPA's way to say that <s> is never predicted
_FILE_NAMES = {SPACE: " ", "<UNK>": UNKNOWN, "<S>": BEGIN, "</S>": END}  # some tools write the marks in capitals
_DECLARATION = re.compile(r"ngram (\d+)=(\d+)")
_SECTION = re.compile(r"\\(\d+)-grams:")


class NGram:
    """A back-off model of tokens.

    log_probs: ln p(last | those before) of each n-gram; backoffs: ln of the weight of the shorter context, by context.
    """

    def __init__(self, tokens: Sequence[str], log_probs: dict[State, float], backoffs: dict[State, float]) -> None:
        self.tokens = list(tokens)
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        missing = [token for token in (BEGIN, END, UNKNOWN) if token not in self.ids]
        if missing:
            raise ValueError(f"an n-gram model needs the tokens {BEGIN} {END} {UNKNOWN}; missing {missing}")
        self.log_probs = log_probs
        self.backoffs = backoffs
        self.order = max(map(len, log_probs))

    def id_of(self, token: str) -> int:
        return self.ids.get(token, self.ids[UNKNOWN])

    @property
    def start(self) -> State:
        """The state at the beginning of a sentence."""
        return self._shorten((self.ids[BEGIN],))

    def advance(self, state: State, token: int) -> State:
        """Return the state after one more token; equal states predict equally."""
        return self._shorten((*state, token)[-(self.order - 1) :] if self.order > 1 else ())

    def score(self, state: State, token: int) -> float:
        """Return ln p(token | state)."""
        backoff = 0.0
        for first in range(len(state) + 1):
            found = self.log_probs.get((*state[first:], token))
            if found is not None:
                return backoff + found
            backoff += self.backoffs.get(state[first:], 0.0)
        return NEVER

    def distribution(self, state: State) -> np.ndarray:
        """Return ln p(token | state) of every token, (num_tokens,) float64."""
        if state:
            scores = self.distribution(state[1:]) + self.backoffs.get(state, 0.0)
        else:
            scores = np.full(len(self.tokens), NEVER)
        if state in self._followers:
            tokens, log_probs = self._followers[state]
            scores[tokens] = log_probs
        return scores

    def sentence_log_prob(self, sentence: Sequence[str]) -> float:
        """Return ln p of the sentence and its end."""
        state, log_prob = self.start, 0.0
        for token in (*map(self.id_of, sentence), self.ids[END]):
            log_prob += self.score(state, token)
            state = self.advance(state, token)
        return log_prob

    def perplexity(self, sentences: Sequence[Sequence[str]]) -> float:
        """Return exp of the mean -ln p of a token, sentence ends included; unknown tokens count as <unk>."""
        return math.exp(-sum(map(self.sentence_log_prob, sentences)) / sum(len(one) + 1 for one in sentences))

    def save(self, path: Path) -> None:
        """Write an ARPA file, ten digits a number; a space is spelled <space>."""
        write_whole(path, "".join(self._arpa_lines()))

    @classmethod
    def load(cls, path: Path) -> "NGram":
        """Read an ARPA file, also a gzipped one; ValueError where it is malformed. Without <unk> nothing is unknown."""
        tokens: dict[str, int] = {}
        log_probs: dict[State, float] = {}
        backoffs: dict[State, float] = {}
        declared: dict[int, int] = {}
        order = 0
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                line = line.strip()
                if header := _DECLARATION.fullmatch(line):
                    declared[int(header[1])] = int(header[2])
                elif section := _SECTION.fullmatch(line):
                    order = int(section[1])
                elif line and order and line != "\\end\\":
                    fields = line.split()
                    words = [_FILE_NAMES.get(word, word) for word in fields[1 : order + 1]]
                    if len(fields) not in (order + 1, order + 2):
                        raise ValueError(f"{path}:{number}: got {line!r}, expected a {order}-gram of an ARPA file")
                    if order > 1 and any(word not in tokens for word in words):
                        raise ValueError(f"{path}:{number}: {words} has a word that is not among the 1-grams")
                    ngram = tuple(tokens.setdefault(word, len(tokens)) for word in words)
                    log_probs[ngram] = float(fields[0]) * LN10
                    if len(fields) == order + 2:
                        backoffs[ngram] = float(fields[-1]) * LN10
        found = dict(Counter(map(len, log_probs)))
        if not found or found != declared:
            raise ValueError(f"{path}: declares n-grams {declared} but holds {found}: no ARPA file, or cut short")
        if UNKNOWN not in tokens:  # a closed vocabulary
            log_probs[(tokens.setdefault(UNKNOWN, len(tokens)),)] = NEVER
        return cls(list(tokens), log_probs, backoffs)

    def _arpa_lines(self) -> Iterator[str]:
        by_order: dict[int, list[State]] = defaultdict(list)
        for ngram in self.log_probs:
            by_order[len(ngram)].append(ngram)
        yield "\\data\\\n"
        for order in sorted(by_order):
            yield f"ngram {order}={len(by_order[order])}\n"
        for order in sorted(by_order):
            yield f"\n\\{order}-grams:\n"
            for ngram in by_order[order]:
                words = " ".join(SPACE if self.tokens[token] == " " else self.tokens[token] for token in ngram)
                backoff = f"\t{self.backoffs[ngram] / LN10:.10g}" if ngram in self.backoffs else ""
                yield f"{self.log_probs[ngram] / LN10:.10g}\t{words}{backoff}\n"
        yield "\n\\end\\\n"

    def _shorten(self, state: State) -> State:
        while state and state not in self.backoffs and state not in self._followers:
            state = state[1:]
        return state

    @cached_property
    def _followers(self) -> dict[State, tuple[np.ndarray, np.ndarray]]:
        """The tokens seen after each context, and their log-probabilities."""
        followers: dict[State, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        for ngram, log_prob in self.log_probs.items():
            tokens, log_probs = followers[ngram[:-1]]
            tokens.append(ngram[-1])
            log_probs.append(log_prob)
        return {context: (np.array(tokens), np.array(probs)) for context, (tokens, probs) in followers.items()}
