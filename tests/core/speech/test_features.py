"""LogMel against the definition in numpy loops and against torchaudio; padding, precision and counts."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from core.speech.features import FeatureConfig, FeatureStats, LogMel, mel_filters, num_frames
from tests.closeness import assert_close

pytestmark = pytest.mark.numerics

RATE = 16000
PLAIN = FeatureConfig(normalize="none")


def _audio(num_samples: int, *, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def _one(config: FeatureConfig, audio: torch.Tensor) -> torch.Tensor:
    """Features (T, F) of one utterance (S,)."""
    features, counts = LogMel(config)(audio[None], torch.tensor([len(audio)]))
    assert features.dtype == torch.float32
    return features[0, : counts[0]]


def _by_definition(config: FeatureConfig, audio: np.ndarray) -> np.ndarray:
    """(T, F) float64: mirror, window, DFT by its sum, triangles, logarithm."""
    size, hop = config.fft_size, config.hop_samples
    if config.center:
        half = size // 2
        audio = np.concatenate([audio[1 : half + 1][::-1], audio, audio[-half - 1 : -1][::-1]])
    window = np.zeros(size)
    left = (size - config.window_samples) // 2
    for n in range(config.window_samples):
        window[left + n] = 0.5 - 0.5 * math.cos(2 * math.pi * n / config.window_samples)
    top_hz = config.sample_rate_hz / 2 if config.high_hz is None else config.high_hz
    mel = [2595 * math.log10(1 + hz / 700) for hz in (config.low_hz, top_hz)]
    edges = [mel[0] + (mel[1] - mel[0]) * k / (config.num_mels + 1) for k in range(config.num_mels + 2)]
    edges_hz = [700 * (10 ** (edge / 2595) - 1) for edge in edges]
    rows = []
    for start in range(0, len(audio) - size + 1, hop):
        frame = audio[start : start + size] * window
        row = np.zeros(config.num_mels)
        for k in range(size // 2 + 1):
            power = abs(np.sum(frame * np.exp(-2j * np.pi * k * np.arange(size) / size))) ** 2
            hz = k * config.sample_rate_hz / size
            for f in range(config.num_mels):
                low, peak, high = edges_hz[f : f + 3]
                row[f] += power * max(0.0, min((hz - low) / (peak - low), (high - hz) / (high - peak)))
        row = np.maximum(row, 1e-10)
        rows.append(10 * np.log10(row) if config.scale == "db" else np.log(row))
    return np.array(rows)


@pytest.mark.parametrize(
    "config",
    [
        PLAIN,
        FeatureConfig(normalize="none", center=False, scale="log"),
        FeatureConfig(normalize="none", num_mels=10, fft_size=256, window_samples=200, hop_samples=100, low_hz=50.0,
                      high_hz=3600.0, sample_rate_hz=8000),
    ],
)  # fmt: skip
def test_features_are_those_of_the_definition(config: FeatureConfig) -> None:
    audio = _audio(1234)
    expected = _by_definition(config, audio.double().numpy())
    features = _one(config, audio)
    assert features.shape == expected.shape
    assert_close(features, expected)


@pytest.mark.parametrize("center", [True, False])
def test_features_are_those_of_torchaudio(center: bool) -> None:
    try:
        from torchaudio.transforms import AmplitudeToDB, MelSpectrogram
    except (ImportError, OSError) as error:  # OSError: its library looks for CUDA beside a CPU build of torch
        pytest.skip(f"torchaudio does not import: {error}")
    mel = MelSpectrogram(RATE, n_fft=400, win_length=400, hop_length=160, n_mels=80, power=2, center=center)
    rival = nn.Sequential(mel, AmplitudeToDB())
    audio = _audio(2 * RATE + 77) * torch.linspace(0, 1, 2 * RATE + 77)
    expected = rival(audio).T
    features = _one(FeatureConfig(normalize="none", center=center), audio)
    assert features.shape == expected.shape
    assert_close(features, expected)


def test_silence_is_minus_100_db() -> None:
    assert torch.equal(_one(PLAIN, torch.zeros(800)), torch.full((6, 80), -100.0))


@pytest.mark.parametrize("center", [True, False])
def test_frames_are_counted_exactly(center: bool) -> None:
    config = FeatureConfig(center=center)
    lengths = [0, 1, 159, 160, 161, 200, 201, 399, 400, 401, 559, 560, 561, 16000]
    counts = [num_frames(n, config=config) for n in lengths]
    for length, count in zip(lengths, counts, strict=True):
        if length >= (201 if center else 400):
            assert count == len(_by_definition(FeatureConfig(center=center, num_mels=1), np.zeros(length)))
        assert type(count) is int and len(_one(config, _audio(length))) == count
    np.testing.assert_array_equal(num_frames(np.array(lengths), config=config), counts)
    assert num_frames(torch.tensor(lengths), config=config).tolist() == counts
    assert counts[0] == 0 and counts[-1] == (101 if center else 98)


@pytest.mark.parametrize("config", [FeatureConfig(), PLAIN, FeatureConfig(center=False)])
@pytest.mark.parametrize("padding", [0.0, 3.0, math.nan])
def test_what_follows_an_utterance_changes_nothing(config: FeatureConfig, padding: float) -> None:
    lengths = [4000, 2345, 640, 401, 0]
    batch = torch.full((len(lengths), 4321), padding)
    for row, length in enumerate(lengths):
        batch[row, :length] = _audio(length, seed=row)
    features, counts = LogMel(config)(batch, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = _one(config, _audio(length, seed=row))
        assert_close(features[row, : counts[row]], alone, rel=2e-6 if config is PLAIN else 1e-4)  # over a small std
        assert (features[row, counts[row] :] == 0).all()


def test_normalization_is_of_each_bin_over_the_valid_frames() -> None:
    lengths = torch.tensor([16000, 9000])
    audio = torch.stack([_audio(16000), _audio(16000, seed=1) * torch.linspace(0, 1, 16000)])
    normalized, counts = LogMel(FeatureConfig())(audio, lengths)
    plain, _ = LogMel(PLAIN)(audio, lengths)
    for row, count in enumerate(counts.tolist()):
        x = plain[row, :count].double().numpy()
        expected = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-3)
        assert_close(normalized[row, :count], expected)


def test_a_bin_that_never_changes_becomes_zero() -> None:
    assert (_one(FeatureConfig(), torch.zeros(RATE)).abs() < 0.1).all()
    assert _one(FeatureConfig(), _audio(100)).abs().max() == 0  # a single frame is its own mean


@pytest.mark.parametrize("length", [1, 2, 100, 200])
def test_an_utterance_shorter_than_half_a_window_has_finite_features(length: int) -> None:
    assert _one(PLAIN, _audio(length)).isfinite().all()


def test_features_stay_fp32_in_a_bf16_model_under_autocast_and_from_meta() -> None:
    audio, lengths = _audio(8000)[None], torch.tensor([8000])
    expected, _ = LogMel(PLAIN)(audio, lengths)
    with torch.device("meta"):
        model = nn.ModuleDict({"features": LogMel(PLAIN)})
    model = copy.deepcopy(model.to_empty(device="cpu").bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = model["features"](audio, lengths)
    assert features.dtype == torch.float32 and torch.equal(features, expected)
    assert not model.state_dict()


def test_the_number_of_threads_changes_no_bit() -> None:
    audio = _audio(3 * RATE)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(_one(FeatureConfig(), audio))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_on_the_cpu() -> None:
    audio, lengths = torch.stack([_audio(16000), _audio(16000, seed=1)]), torch.tensor([16000, 12345])
    log_mel = LogMel(PLAIN)
    on_gpu, counts = log_mel(audio.cuda(), lengths.cuda())
    on_cpu, expected_counts = log_mel(audio, lengths)
    assert counts.tolist() == expected_counts.tolist()
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=2e-2, rtol=0)  # TF32 may be on


def test_filters_are_triangles_of_height_1_that_sum_to_1() -> None:
    filters = mel_filters(FeatureConfig(num_mels=20))
    assert filters.shape == (201, 20) and filters.min() == 0 and filters.max() <= 1
    inner = filters[5:170].sum(dim=1)  # between the first and the last peak the slopes of neighbors add to 1
    torch.testing.assert_close(inner, torch.ones_like(inner))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fft_size": 401}, "fft_size=401 must be even"),
        ({"fft_size": 256}, "window_samples=400 must not exceed fft_size=256"),
        ({"high_hz": 9000.0}, r"high_hz=9000\.0 must be 0 <= low_hz < high_hz <= 8000\.0"),
        ({"low_hz": -1.0}, r"low_hz=-1\.0"),
        ({"hop_samples": 0}, "hop_samples=0 must be at least 1"),
    ],
)
def test_contradicting_sizes_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureConfig(**values)


def test_corpus_statistics_normalize_the_speech_they_were_taken_from(tmp_path: Path) -> None:
    audio = [_audio(RATE), 3 * _audio(RATE // 2, seed=1)]
    frames = [_one(PLAIN, one) for one in audio]
    FeatureStats.of(frames).save(tmp_path / "stats.json")
    stats = FeatureStats.load(tmp_path / "stats.json")
    together = torch.cat(frames).double().numpy()
    assert_close(stats.mean, together.mean(0), rel=1e-7)
    assert_close(stats.std, together.std(0), rel=1e-7)
    config = FeatureConfig(normalize="corpus")
    found, counts = LogMel(config, stats=stats)(
        nn.utils.rnn.pad_sequence(audio, batch_first=True), torch.tensor([RATE, RATE // 2])
    )
    expected = (frames[1].numpy() - together.mean(0)) / (together.std(0) + 1e-3)
    assert_close(found[1, : counts[1]], expected)
    assert not found[1, counts[1] :].any()


def test_statistics_are_asked_for_where_they_are_used_and_only_there() -> None:
    stats = FeatureStats([0.0], [1.0])
    with pytest.raises(ValueError, match="normalize=corpus needs stats"):
        LogMel(FeatureConfig(normalize="corpus"))
    with pytest.raises(ValueError, match="normalize=utterance needs no stats"):
        LogMel(FeatureConfig(), stats=stats)
    with pytest.raises(ValueError, match="no frames"):
        FeatureStats.of([])
