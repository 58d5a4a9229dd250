"""Speed of the LMU: against the cell as it is usually written, and our forms against each other.

    python -m tests.bench.lmu [--rounds 3] [--threads 1]

A case is a forward and a backward pass, to the inputs too. Prints markdown. All cases of a table run interleaved in
this process; a ratio is that of one round, so other work on the machine weighs on both of its sides.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.lmu.cell import LMU, LMUCellConfig
from core.models.lmu.legendre import discrete_system
from core.models.lmu.memory import Form, ParallelLMU, cheapest_form

ORDER, THETA, HIDDEN = 192, 1000.0, 384  # the published layer


class Seconds(NamedTuple):
    cpu: float
    wall: float


class RivalCell(nn.Module):
    """The cell of pytorch-lmu: a loop over frames with eight products each, on which autograd records every one."""

    def __init__(self) -> None:
        super().__init__()
        self.e_x, self.e_h, self.e_m = (_parameter(1, n) for n in (HIDDEN, HIDDEN, ORDER))
        self.W_x, self.W_h, self.W_m = (_parameter(HIDDEN, n) for n in (HIDDEN, HIDDEN, ORDER))
        A, B = discrete_system(ORDER, THETA, discretizer="zoh")
        self.register_buffer("A", A.float())
        self.register_buffer("B", B.float()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, HIDDEN) -> (B, T, HIDDEN)."""
        h, m, output = x.new_zeros(len(x), HIDDEN), x.new_zeros(len(x), ORDER), []
        for t in range(x.size(1)):
            frame = x[:, t]
            u = F.linear(frame, self.e_x) + F.linear(h, self.e_h) + F.linear(m, self.e_m)
            m = F.linear(m, self.A) + F.linear(u, self.B)  # type: ignore[arg-type]
            h = torch.tanh(F.linear(frame, self.W_x) + F.linear(h, self.W_h) + F.linear(m, self.W_m))
            output.append(h)
        return torch.stack(output, dim=1)


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * shape[1] ** -0.5)


def exact_cell(rounds: int) -> None:
    """The cell with all its recurrences, and the parallel LMU that replaces it."""
    batch, num_frames = 8, 1000
    x = torch.randn(batch, num_frames, HIDDEN, requires_grad=True)  # as every layer but the first gets it
    exact = LMU(LMUCellConfig(input_dim=HIDDEN, hidden_dim=HIDDEN, order=ORDER, theta=THETA))
    cases: dict[str, Callable[[], Tensor]] = {
        "rival": partial(RivalCell(), x),
        "exact, one GEMM a frame": lambda: exact(x)[0],
        "exact, stepwise": lambda: exact(x, form="stepwise")[0],
    }
    forms: list[Form] = ["auto", "fft", "chunked"]
    for form in forms:
        layer = ParallelLMU(input_dim=HIDDEN, hidden_dim=HIDDEN, order=ORDER, theta=THETA, form=form)
        cases[f"parallel, {form}"] = partial(layer, x)
    seconds = interleave(cases, rounds=rounds)
    print(f"\n## Layer against the usual cell, B{batch} T{num_frames} hidden {HIDDEN} order {ORDER}\n")
    print("| ours | rival / ours, CPU time: median (min to max) | wall time |\n|---|---|---|")
    for name, ours in seconds.items():
        if name != "rival":
            print(f"| {name} | {ratios(seconds['rival'], ours, 'cpu')} | {ratios(seconds['rival'], ours, 'wall')} |")


def dispatch(rounds: int) -> None:
    """What the dispatch takes against every form, for the published layer and for short, wide memories."""
    print("\n## Dispatch against every form\n")
    print("CPU time of the form / of the one that `auto` takes: above 1, `auto` is the faster.\n")
    print("| order x channels | B | T | auto takes | fft | chunked | recurrent |\n|---|---|---|---|---|---|---|")
    for batch in (1, 8, 32):
        for num_frames in (50, 400, 1000, 1600):
            _dispatch_row(batch, num_frames, order=ORDER, theta=THETA, channels=1, rounds=rounds)
    for batch, num_frames in ((1, 100), (16, 25), (16, 50), (16, 100), (8, 200)):
        _dispatch_row(batch, num_frames, order=16, theta=50.0, channels=32, rounds=rounds)


def _dispatch_row(batch: int, num_frames: int, *, order: int, theta: float, channels: int, rounds: int) -> None:
    chosen = cheapest_form(num_frames, batch=batch, order=order, channels=channels, device_type="cpu")
    layer = ParallelLMU(input_dim=HIDDEN, hidden_dim=HIDDEN, order=order, theta=theta, memory_channels=channels)
    x = torch.randn(batch, num_frames, HIDDEN, requires_grad=True)  # as every layer but the first gets it

    def run(form: Form) -> Tensor:
        layer.form = form
        return layer(x)

    forms: list[Form] = ["fft", "chunked"]
    seconds = interleave({form: partial(run, form) for form in forms}, rounds=rounds)
    if batch * num_frames <= 8000:  # beyond, a single round of it would take longer than all the rest
        seconds |= interleave({"recurrent": partial(run, "recurrent")}, rounds=1)
    cells = [
        ratios(seconds[form], seconds[chosen], "cpu") if form in seconds else "-" for form in (*forms, "recurrent")
    ]
    print(f"| {order} x {channels} | {batch} | {num_frames} | {chosen} | {' | '.join(cells)} |", flush=True)


def interleave(cases: dict[str, Callable[[], Tensor]], *, rounds: int) -> dict[str, list[Seconds]]:
    """Seconds of a forward and a backward pass of each case, in turn, after one round that does not count."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in cases}
    for round_number in range(rounds + 1):
        for name, case in cases.items():
            cpu, wall = time.process_time(), time.perf_counter()
            case().sum().backward()
            if round_number:
                seconds[name].append(Seconds(time.process_time() - cpu, time.perf_counter() - wall))
    return seconds


def ratios(rival: list[Seconds], ours: list[Seconds], kind: str) -> str:
    """`median (min to max)` over rounds; one number where a side ran once."""
    if min(len(rival), len(ours)) == 1:
        one, other = (statistics.median(getattr(s, kind) for s in side) for side in (rival, ours))
        return f"{one / other:.2f}"
    values = [getattr(r, kind) / getattr(o, kind) for r, o in zip(rival, ours, strict=True)]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"# LMU, forwards and backwards, CPU, {arguments.threads} thread(s), {arguments.rounds} rounds")
    exact_cell(arguments.rounds)
    dispatch(arguments.rounds)


if __name__ == "__main__":
    main()
