"""The contrastive losses side by side with the predecessor's formula and OpenCLIP's, and the memory of GradCache.

    python -m tests.bench.contrastive [--rounds 5] [--pairs 1024] [--dim 768] [--threads 1] [--large 4096]

A case is normalization, loss and backward of (pairs, dim) features of both sides; the rivals are written down from
their sources as they call torch. Prints markdown. All cases run interleaved in this process; a ratio is that of the CPU
times of one round. Memory is the growth of a forked process's peak during one forward and backward of a small
transformer over `--large` texts.
"""

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from core.losses.contrastive import Kind, PairEmbeddings, contrastive_loss
from core.losses.grad_cache import grad_cache_loss
from core.models.text_encoder import OwnTextConfig, TextEncoder

Case = Callable[[], object]

CHUNK_ROWS, NUM_TOKENS = 64, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [("rounds", 5), ("pairs", 1024), ("dim", 768), ("threads", 1), ("large", 4096)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    speech, text = (torch.randn(arguments.pairs, arguments.dim, requires_grad=True) for _ in range(2))
    log_scale, bias = torch.tensor([math.log(1 / 0.07)], requires_grad=True), torch.tensor([-10.0], requires_grad=True)
    keys = torch.arange(arguments.pairs)

    def ours(kind: Kind, keys: Tensor | None) -> None:
        rows = F.normalize(speech, dim=1), F.normalize(text, dim=1)
        output = PairEmbeddings(*rows, log_scale, bias if kind == "siglip" else None)
        loss = contrastive_loss(output, text_keys=keys, num_targets=arguments.pairs, group=None, kind=kind)
        (loss.loss_sum / arguments.pairs).backward()

    infonce: dict[str, Case] = {
        "InfoNCE": partial(ours, "infonce", None),
        "InfoNCE, equal texts left out": partial(ours, "infonce", keys),
        "the predecessor's": lambda: predecessor(speech, text, log_scale).backward(),
        "OpenCLIP's ClipLoss": lambda: clip_loss(speech, text, log_scale).backward(),
    }
    siglip: dict[str, Case] = {
        "SigLIP": partial(ours, "siglip", None),
        "OpenCLIP's SigLipLoss": lambda: siglip_loss(speech, text, log_scale, bias).backward(),
    }
    print(f"# Contrastive losses, {arguments.pairs} x {arguments.dim}, CPU, {arguments.threads} thread(s)\n")
    for cases in (infonce, siglip):
        compare(cases, rounds=arguments.rounds)
    print(f"\n# GradCache, {arguments.large} pairs\n")
    memory(arguments.large)


def predecessor(speech: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    """CSRef 2.0: normalize, one product, two cross-entropies of its mean."""
    speech, text = speech / speech.norm(dim=-1, keepdim=True), text / text.norm(dim=-1, keepdim=True)
    logits = log_scale.exp() * speech @ text.t()
    wanted = torch.arange(len(logits))
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.t(), wanted)) / 2


def clip_loss(speech: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    """OpenCLIP 2 on one process: a product a direction."""
    speech, text, scale = F.normalize(speech, dim=-1), F.normalize(text, dim=-1), log_scale.exp()
    wanted = torch.arange(len(speech))
    of_speech, of_text = scale * speech @ text.t(), scale * text @ speech.t()
    return (F.cross_entropy(of_speech, wanted) + F.cross_entropy(of_text, wanted)) / 2


def siglip_loss(speech: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """OpenCLIP 2 on one process."""
    logits = log_scale.exp() * F.normalize(speech, dim=-1) @ F.normalize(text, dim=-1).t() + bias
    signs = 2 * torch.eye(len(logits)) - torch.ones_like(logits)
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def compare(cases: dict[str, Case], *, rounds: int) -> None:
    """A table whose first case is the measure, after a round that does not count."""
    results = [{name: cpu_s(case) for name, case in cases.items()} for _ in range(rounds + 1)][1:]
    first = next(iter(cases))
    print(f"| | CPU s | time / {first}: median (min to max) |\n|---|---|---|")
    for name in cases:
        ratios = sorted(round_[name] / round_[first] for round_ in results)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {name} | {statistics.median(round_[name] for round_ in results):.4f} | {spread} |", flush=True)
    print()


def memory(num_pairs: int) -> None:
    """Peaks of one forward and backward, whole and in chunks, of this many pairs and of an eighth of them."""
    model = TextEncoder(OwnTextConfig(dim=64, num_layers=2, num_heads=2, ffn_dim=256, dropout=0.0), vocab_size=40)
    log_scale = torch.zeros(1, requires_grad=True)
    tokens = torch.randint(40, (num_pairs, NUM_TOKENS))
    targets = F.normalize(torch.randn(num_pairs, 64), dim=1)

    def step(count: int, chunk_rows: int) -> None:
        def encode(rows: slice) -> PairEmbeddings:
            lengths = torch.full((len(tokens[:count][rows]),), NUM_TOKENS)
            rows_of_model = F.normalize(model(tokens[:count][rows], lengths), dim=1)
            return PairEmbeddings(rows_of_model, targets[:count][rows], log_scale.clone())

        loss = partial(contrastive_loss, text_keys=None, num_targets=count, group=None)
        for part in grad_cache_loss(encode, loss, num_rows=count, chunk_rows=chunk_rows, group=None):
            part().loss_sum.backward()

    print("| pairs | whole, MiB | in chunks of 64, MiB | whole / chunks |\n|---|---|---|---|")
    for count in (num_pairs // 8, num_pairs):
        whole, chunked = (peak_mib(partial(step, count, chunk_rows)) for chunk_rows in (count, CHUNK_ROWS))
        print(f"| {count:,} | {whole:.0f} | {chunked:.0f} | {whole / chunked:.1f} |", flush=True)
    print(f"\nThe matrix of logits, and its gradient, are {num_pairs**2 * 4 / 2**20:.0f} MiB each.")


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
