"""Measures of clusters against scikit-learn and by hand; bootstrap intervals; pictures."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from core.units.cluster_report import cluster_report, draw_report, pnmi_gain


def corpus(num: int, *, noise: float, seed: int = 0) -> tuple[list[np.ndarray], list[list[str | None]]]:
    """Utterances whose frames' clusters say the phone, but for a share of noise; every tenth phone is unknown."""
    rng = np.random.default_rng(seed)
    labels, phones = [], []
    for _ in range(num):
        truth = rng.integers(5, size=int(rng.integers(20, 60)))
        said = np.where(rng.random(len(truth)) < noise, rng.integers(8, size=len(truth)), truth)
        labels.append(said)
        phones.append([None if rng.random() < 0.1 else "abcde"[phone] for phone in truth])
    return labels, phones


def known(labels: list[np.ndarray], phones: list[list[str | None]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(c, p) for one, two in zip(labels, phones, strict=True) for c, p in zip(one, two, strict=True) if p]
    clusters, symbols = zip(*pairs, strict=True)
    return np.array(clusters), np.array(symbols)


def test_measures_are_those_of_the_definitions() -> None:
    labels, phones = corpus(30, noise=0.4)
    report = cluster_report(labels, phones, num_clusters=10, seed=0)
    clusters, symbols = known(labels, phones)
    entropy = mutual_info_score(symbols, symbols)
    assert report.phones is not None
    assert report.phones.pnmi.value == pytest.approx(mutual_info_score(symbols, clusters) / entropy, rel=1e-9)
    purity = sum(max((symbols[clusters == c] == p).sum() for p in "abcde") for c in set(clusters)) / len(clusters)
    assert report.phones.phone_purity == pytest.approx(purity)
    other = sum(max((clusters[symbols == p] == c).sum() for c in range(10)) for p in "abcde") / len(clusters)
    assert report.phones.cluster_purity == pytest.approx(other)
    everything = np.concatenate(labels)
    shares = np.bincount(everything)[np.bincount(everything) > 0] / len(everything)
    assert report.entropy_bits == pytest.approx(-(shares * np.log2(shares)).sum())
    assert (report.num_used, report.num_clusters) == (8, 10) and report.counts.sum() == len(everything)
    assert report.unigram_accuracy == pytest.approx(shares.max())


def test_perfect_and_useless_clusters() -> None:
    _, phones = corpus(40, noise=0.0)
    perfect = [np.array(["abcde".index(p or "a") for p in one]) for one in phones]
    useless = [np.zeros(len(one), np.int64) for one in phones]
    report = cluster_report(perfect, phones, num_clusters=5, seed=0)
    assert report.phones is not None
    assert report.phones.pnmi == pytest.approx((1.0, 1.0, 1.0)) and report.phones.phone_purity == 1.0
    report = cluster_report(useless, phones, num_clusters=5, seed=0)
    assert report.phones is not None and report.phones.pnmi == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    assert (report.num_used, report.entropy_bits) == (1, pytest.approx(0.0, abs=1e-12))


def test_the_interval_is_that_of_a_bootstrap_by_loops() -> None:
    labels, phones = corpus(25, noise=0.5)
    report = cluster_report(labels, phones, num_clusters=8, seed=0)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(300):
        rows = rng.integers(25, size=25)
        clusters, symbols = known([labels[row] for row in rows], [phones[row] for row in rows])
        values.append(mutual_info_score(symbols, clusters) / mutual_info_score(symbols, symbols))
    assert report.phones is not None
    value, low, high = report.phones.pnmi
    assert 2 * value - high == pytest.approx(np.quantile(values, 0.025), abs=0.012)
    assert 2 * value - low == pytest.approx(np.quantile(values, 0.975), abs=0.012)


class Speech:
    """Endless speech with a known PNMI: phones of several frames, two speakers who say a phone in clusters of their
    own, and two clusters a phone at most, so that frames of an utterance are far from independent."""

    def __init__(self, *, num_phones: int, num_clusters: int, sharpness: float) -> None:
        rng = np.random.default_rng(0)
        self.phones = rng.dirichlet(np.full(num_phones, 3.0))
        self.clusters = rng.dirichlet(
            np.full(num_clusters, sharpness), size=(2, num_phones)
        )  # (speaker, phone, cluster)

    @property
    def pnmi(self) -> float:
        joint = self.phones[:, None] * self.clusters.mean(axis=0)
        independent = np.outer(joint.sum(axis=1), joint.sum(axis=0))
        information = (joint[joint > 0] * np.log(joint[joint > 0] / independent[joint > 0])).sum()
        return float(information / -(self.phones * np.log(self.phones)).sum())

    def utterances(self, num: int, *, seed: int) -> tuple[list[np.ndarray], list[list[str | None]]]:
        rng = np.random.default_rng(seed)
        labels, phones = [], []
        for _ in range(num):
            spoken = np.repeat(rng.choice(len(self.phones), size=40, p=self.phones), 4)
            bounds = self.clusters[rng.integers(2)].cumsum(axis=1)[spoken]  # (frames, clusters)
            chance = np.repeat(rng.random(80), 2)
            labels.append((chance[:, None] > bounds[:, :-1]).sum(axis=1))
            phones.append([f"phone {phone}" for phone in spoken])
        return labels, phones


def test_intervals_have_the_true_pnmi_in_them_where_resampled_values_have_not() -> None:
    speech = Speech(num_phones=8, num_clusters=10, sharpness=0.3)
    other = Speech(num_phones=8, num_clusters=10, sharpness=0.8)
    found, gains = [], []
    for seed in range(60):
        labels, phones = speech.utterances(12, seed=seed)
        worse, same = other.utterances(12, seed=seed)
        assert same == phones
        report = cluster_report(labels, phones, num_clusters=10, seed=seed)
        assert report.phones is not None
        found.append(report.phones.pnmi)
        gains.append(pnmi_gain(labels, worse, phones, seed=seed))
    assert np.mean([one.value for one in found]) > speech.pnmi + 0.015, "few utterances have more"
    assert np.mean([(one.low + one.high) / 2 for one in found]) == pytest.approx(speech.pnmi, abs=0.01)
    assert np.mean([one.low <= speech.pnmi <= one.high for one in found]) > 0.85
    assert np.mean([2 * v - high <= speech.pnmi <= 2 * v - low for v, low, high in found]) < 0.5
    assert np.mean([one.low <= speech.pnmi - other.pnmi <= one.high for one in gains]) > 0.8


def test_a_gain_is_sure_where_there_is_one_and_not_where_there_is_none() -> None:
    better, phones = corpus(60, noise=0.4)
    rng = np.random.default_rng(5)
    worse = [np.where(rng.random(len(one)) < 0.1, rng.integers(8, size=len(one)), one) for one in better]
    gain = pnmi_gain(better, worse, phones, seed=0)
    assert 0 < gain.low < gain.value < gain.high
    swapped = pnmi_gain(worse, better, phones, seed=0)
    assert swapped.value == pytest.approx(-gain.value) and swapped.high < 0
    renamed = [7 - one for one in better]  # other names, the same clusters
    assert pnmi_gain(better, renamed, phones, seed=0) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_what_is_said_and_drawn(tmp_path: Path) -> None:
    labels, phones = corpus(20, noise=0.2)
    report = cluster_report(labels, phones, num_clusters=8, seed=0)
    assert "in 8 of 8 clusters" in report.describe() and "PNMI 0." in report.describe()
    assert report.phones is not None
    scores = report.scores("labels.")
    assert scores["labels.pnmi"] == report.phones.pnmi.value and scores["labels.clusters_used"] == 8.0
    without = cluster_report(labels, None, num_clusters=8, seed=0)
    assert "PNMI" not in without.describe() and "pnmi" not in without.scores("")
    for number, one in enumerate((report, without)):
        draw_report(one, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="utterance 1 has 3 labels and 2 phones"):
        cluster_report([np.zeros(2, int), np.zeros(3, int)], [["a", "b"], ["a", "b"]], num_clusters=2, seed=0)
    with pytest.raises(ValueError, match="no frame has a phone"):
        cluster_report([np.zeros(2, int)], [[None, None]], num_clusters=2, seed=0)
