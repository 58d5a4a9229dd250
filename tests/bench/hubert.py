"""HuBERT side by side with torchaudio: the head, a training step, masks.

    python -m tests.bench.hubert [--rounds 3] [--seconds 8] [--threads 1] [--only head masks step]

Both models have the same weights, masks and labels; layer drop is off. A step is forward, loss, backward, clipping and
AdamW, each as its own users call them. Prints markdown. All cases of a table run interleaved in this process; a ratio
is that of the CPU times of one round. Memory is the growth of a forked process's peak during one call.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn
from torchaudio.models.wav2vec2 import components

from core.losses.masked_prediction import masked_prediction_loss
from core.models.hubert.config import hubert_config
from core.models.hubert.model import ClusterHead, HubertPretraining
from core.models.hubert.names import export_state
from core.optim.optim import OptimConfig, build_optimizer
from core.parallel.gradients import clip_gradients
from core.seeding import generator
from core.speech.masking import MaskConfig, span_mask

Case = Callable[[], object]

DIM, FINAL_DIM = 768, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of audio in a step, in two clips")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=["head", "masks", "step"], default=["head", "masks", "step"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"# HuBERT and torchaudio's, CPU, {arguments.threads} thread(s), {arguments.rounds} rounds\n")
    print("| what | ours, CPU s | torchaudio, CPU s | ratio: median (min to max) |\n|---|---|---|---|")
    if "head" in arguments.only:
        head(rounds=arguments.rounds)
    if "masks" in arguments.only:
        masks(rounds=arguments.rounds)
    if "step" in arguments.only:
        for num_classes in (500, 100):
            step(num_classes, seconds=arguments.seconds, rounds=arguments.rounds)


def head(*, rounds: int, num_frames: int = 2000, num_classes: int = 500) -> None:
    config = hubert_config("base", num_classes=num_classes)
    ours = ClusterHead(config)
    rival = components.LogitGenerator(DIM, num_classes, FINAL_DIM, skip_masked=False, skip_nomask=True)
    hidden, labels = torch.randn(4, num_frames // 4, DIM), torch.randint(num_classes, (4, num_frames // 4))
    is_masked = torch.ones_like(labels, dtype=torch.bool)

    def our_head() -> None:
        masked_prediction_loss(ours(hidden), labels, torch.zeros(4)).loss_sum.backward()

    def their_head() -> None:
        published_loss(rival(hidden, labels, is_masked, ~is_masked)[0]).backward()

    compare(f"head, {num_frames} frames, {num_classes} classes", our_head, their_head, rounds=rounds)
    own, other = peak_mib(our_head), peak_mib(their_head)
    print(f"| its memory, MiB | {own:.1f} | {other:.1f} | {other / own:.0f} |", flush=True)


def masks(*, rounds: int, num_rows: int = 32, num_frames: int = 749) -> None:
    lengths = torch.full((num_rows,), num_frames).numpy()
    padding = torch.zeros(num_rows, num_frames, dtype=torch.bool)

    def ours() -> None:
        span_mask(lengths, config=MaskConfig(), rng=generator(0, "mask"))

    def theirs() -> None:
        components._compute_mask_indices((num_rows, num_frames), padding, 0.8, 10, min_masks=2)

    compare(f"masks of {num_rows} x {num_frames} frames", ours, theirs, rounds=rounds)


def step(num_classes: int, *, seconds: float, rounds: int) -> None:
    model = HubertPretraining(hubert_config("base", num_classes=num_classes))
    rival = torchaudio.models.hubert_pretrain_base(num_classes=num_classes, encoder_layer_drop=0.0)
    rival.load_state_dict(export_state(model, "torchaudio"))
    num_samples = int(seconds * 16000 / 2)
    audio, lengths = 0.1 * torch.randn(2, num_samples), torch.full((2,), num_samples)
    num_frames = model.config.output_lengths(num_samples)
    labels = torch.randint(num_classes, (2, num_frames))
    masked = torch.from_numpy(span_mask([num_frames] * 2, config=MaskConfig(), rng=generator(0, "mask")))
    is_masked = torch.zeros(2, num_frames, dtype=torch.bool).scatter_(1, masked, True)
    optim = OptimConfig(lr=5e-4, betas=[0.9, 0.98], eps=1e-6, weight_decay=0.01)
    our_optimizer = build_optimizer(model, optim)
    their_optimizer = torch.optim.AdamW(rival.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    components._compute_mask_indices = lambda *arguments, **values: is_masked

    def our_step() -> None:
        output = model(audio, lengths, masked_frames=masked)
        loss = masked_prediction_loss(output.logits, labels.gather(1, masked), output.penalties).loss_sum
        (loss / masked.numel()).backward()
        clip_gradients([p.grad for p in model.parameters() if p.grad is not None], max_norm=10.0)
        our_optimizer.step()
        our_optimizer.zero_grad()

    def their_step() -> None:
        logits, other_logits, penalty = rival(audio, labels, lengths)
        loss = published_loss(logits) + 0.0 * published_loss(other_logits) + 10 * penalty * len(logits)
        (loss / len(logits)).backward()
        nn.utils.clip_grad_norm_(rival.parameters(), 10.0)
        their_optimizer.step()
        their_optimizer.zero_grad()

    compare(f"step of base, {num_classes} classes, 2 x {seconds / 2:g} s", our_step, their_step, rounds=rounds)


def published_loss(logits: Tensor) -> Tensor:
    """The right class stands first."""
    wanted = torch.zeros(len(logits), dtype=torch.long)
    return nn.functional.cross_entropy(logits, wanted, reduction="sum")


def compare(name: str, ours: Case, theirs: Case, *, rounds: int) -> None:
    """One line of the table, after a round that does not count."""
    times = [(cpu_s(ours), cpu_s(theirs)) for _ in range(rounds + 1)][1:]
    own, other = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(rival / mine for mine, rival in times)
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"| {name} | {own:.4f} | {other:.4f} | {spread} |", flush=True)


def cpu_s(case: Case) -> float:
    begin = time.process_time()
    case()
    return time.process_time() - begin


def peak_mib(case: Case) -> float:
    """By how much a process's peak of resident memory grows in one call (Linux)."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=partial(_measure_peak, case, sender))
    process.start()
    kib: int = receiver.recv()
    process.join()
    return kib / 1024


def _measure_peak(case: Case, sender: "multiprocessing.connection.Connection") -> None:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status_kib("VmHWM")
    case()
    sender.send(_status_kib("VmHWM") - before)


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
