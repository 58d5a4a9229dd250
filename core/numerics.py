"""Whether this machine computes right: kernels that the recipes use, at their shapes, in fp32 and bf16 against float64.

A library may choose another kernel for every shape and processor, and one that is wrong says nothing: on processors
with AMX a bf16 convolution of 4 groups of 8 channels was off by as much as its largest value (oneDNN of torch 2.13).
"""

import math
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.distributed import Ranks

# The largest error that is rounding, as a share of the largest value. Kernels that are wrong are off by 0.1 and more.
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
LARGEST_ERROR_TF32 = 5e-3  # of fp32 on a GPU, whose convolutions may use TF32
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
# Of a layer that is checked, and of one whose gradients are checked too: larger ones take long in float64.
MOST_WEIGHTS, MOST_WEIGHTS_WITH_GRADIENTS = 2**25, 2**20
NUM_ROWS, NUM_FRAMES = 2, 21
ANOTHER_BUILD = "take another build of torch"
ON_CPU = {
    torch.float32: f"export ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=default, or {ANOTHER_BUILD}",
    torch.bfloat16: "export ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 (no AMX), or set parallel.precision=fp32",
}


class Kernel(NamedTuple):
    """A function of tensors of these shapes; `in_bf16`: the recipes use it in bf16 too."""

    name: str
    compute: Callable[..., Tensor]
    shapes: Sequence[tuple[int, ...]]
    in_bf16: bool = True


class Fault(NamedTuple):
    """A kernel that is wrong, by how much, and what to set; `precision`: fp32 or bf16."""

    words: str
    precision: str
    advice: str


def faults(kernels: Iterable[Kernel], *, dtypes: Sequence[torch.dtype], device: torch.device | str) -> list[Fault]:
    """Return what is wrong with the values and gradients of kernels: one fault a kernel and dtype."""
    found = []
    device_type = torch.device(device).type
    for kernel in kernels:
        own = [dtype for dtype in dtypes if kernel.in_bf16 or dtype == torch.float32]
        wrong: set[torch.dtype] = set()
        for dtype, what, error, largest in _errors(kernel, own, device):
            is_tf32 = dtype == torch.float32 and device_type == "cuda"
            most = LARGEST_ERROR_TF32 if is_tf32 else LARGEST_ERROR[dtype]
            if dtype not in wrong and not error <= most * largest:  # NaN is wrong too
                wrong.add(dtype)
                words = f"{kernel.name} in {NAMES[dtype]} is wrong: its {what} by {error:.2g} of {largest:.2g}"
                advice = ON_CPU[dtype] if device_type == "cpu" else ANOTHER_BUILD
                found.append(Fault(words, NAMES[dtype], advice))
    return found


def check_model(model: nn.Module, ranks: Ranks) -> None:
    """Raise ValueError on every rank where a bf16 kernel for a layer of `model` is wrong on the CPU of any rank."""
    wrong = faults([*kernels_of(model.modules()), *functions()], dtypes=[torch.bfloat16], device="cpu")
    everywhere = ranks.gather([f"on {socket.gethostname()} {fault.words}" for fault in wrong])
    if told := sorted({words for one in everywhere for words in one}):
        raise ValueError(f"parallel.precision=bf16 needs right kernels; {'; '.join(told)}; {ON_CPU[torch.bfloat16]}")


def all_kernels() -> list[Kernel]:
    return [*kernels_of(_recipes_layers()), *functions()]


def kernels_of(modules: Iterable[nn.Module]) -> list[Kernel]:
    """Return the convolutions and linear layers among modules, each shape once."""
    found = (kernel for module in modules for kernel in _of_layer(module))
    return list({kernel.name: kernel for kernel in found}.values())


def functions() -> list[Kernel]:
    """Return what has no weights, at sizes of the tiny and the base models."""
    found = [Kernel("gelu", F.gelu, [(NUM_ROWS, NUM_FRAMES, 512)])]
    for width in (128, 768):
        norm = partial(_layer_norm, width=width)
        found.append(Kernel(f"layer_norm of {width}", norm, [(NUM_ROWS, NUM_FRAMES, width), (width,), (width,)]))
    for num_heads, width in ((4, 32), (12, 64)):
        shapes = [(NUM_ROWS, num_heads, NUM_FRAMES, width)] * 3
        found.append(Kernel(f"attention of {num_heads} heads of {width}", _attention, shapes))
    found.append(Kernel("batched product of 24 x 48 and 48 x 32", torch.bmm, [(NUM_ROWS, 24, 48), (NUM_ROWS, 48, 32)]))
    exact, mean = partial(Kernel, in_bf16=False), partial(torch.einsum, "bct,bt->bc")
    return [
        *found,
        exact("spectrum of 400 samples", _spectrum, [(NUM_ROWS, 98, 400)]),
        exact("convolution by FFT of 384", partial(_fft_convolution, size=384), [(NUM_ROWS, 32, 192), (32, 192)]),
        exact("mean over time by einsum", mean, [(NUM_ROWS, 512, 400), (NUM_ROWS, 400)]),
        exact("CTC of 500 classes", _ctc, [(NUM_FRAMES, NUM_ROWS, 500)]),
        exact("cross_entropy of 500 classes", _cross_entropy, [(64, 500)]),
    ]


def _recipes_layers() -> Iterator[nn.Module]:
    """Yield layers of the recipes' models, without memory."""
    with torch.device("meta"):
        yield nn.Conv1d(32, 32, 16, padding=8, groups=4)  # of no recipe: the one that was found to be wrong
        for width, kernel, groups in ((128, 32, 8), (768, 128, 16)):  # HuBERT's positions
            yield nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        for front_end in ([(1, 32, 10, 5), (32, 64, 7, 4), (64, 96, 7, 4), (96, 128, 4, 4)],
                          [(1, 512, 10, 5), (512, 512, 3, 2), (512, 512, 2, 2)]):  # fmt: skip
            for before, after, kernel, stride in front_end:
                yield nn.Conv1d(before, after, kernel, stride=stride, bias=False)
        for before, after in ((80, 128), (128, 256), (128, 512)):  # subsampling
            yield nn.Conv1d(before, after, 5, stride=2)
        for before in (1, 32):
            yield nn.Conv2d(before, 32, 3, stride=2, padding=(0, 1))
        for width, kernel in ((32, 7), (160, 3), (256, 15), (512, 15)):  # in the blocks
            yield nn.Conv2d(width, width, (1, kernel), groups=width)
        for width, inner in ((32, 64), (128, 512), (160, 640), (384, 1536), (512, 2048), (768, 3072)):
            yield nn.Linear(width, width)
            yield nn.Linear(width, inner)
            yield nn.Linear(inner, width)


def _of_layer(module: nn.Module) -> Iterator[Kernel]:
    """Yield the kernels of a layer; of a convolution in groups also in the layout of a transposed input."""
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) or weight is None or weight.numel() > MOST_WEIGHTS:
        return
    shapes = [tuple(weight.shape)] + ([] if module.bias is None else [tuple(module.bias.shape)])
    if isinstance(module, nn.Linear):
        sizes = f"{module.in_features}, {module.out_features}, bias={module.bias is not None}"
        yield Kernel(f"Linear({sizes})", F.linear, [(NUM_ROWS, NUM_FRAMES, module.in_features), *shapes])
        return
    kind, function = ("Conv1d", F.conv1d) if isinstance(module, nn.Conv1d) else ("Conv2d", F.conv2d)
    options: dict[str, Any] = {name: getattr(module, name) for name in ("stride", "dilation", "groups")}
    padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
    convolve = partial(function, padding=padding, **options)
    sides = [  # that give about NUM_FRAMES frames
        max(size, (NUM_FRAMES - 1) * stride + size - (0 if isinstance(padding, str) else 2 * padding[i]))
        for i, (size, stride) in enumerate(zip(module.kernel_size, module.stride, strict=True))
    ]
    name = f"{kind}({module.extra_repr()})"
    shape = (NUM_ROWS, module.in_channels, *sides)
    if module.groups == 1 or weight.numel() <= MOST_WEIGHTS_WITH_GRADIENTS:
        yield Kernel(name, convolve, [shape, *shapes])
    if module.groups > 1:
        yield Kernel(f"{name}, channels last", partial(_channels_last, convolve), [shape, *shapes])


def _errors(
    kernel: Kernel, dtypes: Sequence[torch.dtype], device: torch.device | str
) -> Iterator[tuple[torch.dtype, str, float, float]]:
    """Yield (dtype, what, its largest error, the largest value) of the result and of each argument's gradient."""
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=random).bfloat16() for shape in kernel.shapes]
    expected = _results(kernel, [one.double() for one in inputs])
    for dtype in dtypes:
        found = _results(kernel, [one.to(device, dtype) for one in inputs])
        for number, (one, reference) in enumerate(zip(found, expected, strict=True)):
            error = float((one.cpu().double() - reference).abs().max())
            yield dtype, f"gradient {number}" if number else "result", error, float(reference.abs().max())


def _results(kernel: Kernel, inputs: list[Tensor]) -> list[Tensor]:
    """Return the result, and the gradients of the inputs for some gradient of the result."""
    for one in inputs:
        one.requires_grad_()
    result = kernel.compute(*inputs)
    if max(map(math.prod, kernel.shapes)) > MOST_WEIGHTS_WITH_GRADIENTS:
        return [result.detach()]
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    return [result.detach(), *torch.autograd.grad(result, inputs, upstream.to(result))]


def _channels_last(convolve: Callable[..., Tensor], x: Tensor, *weights: Tensor) -> Tensor:
    return convolve(x.movedim(1, -1).contiguous().movedim(-1, 1), *weights)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, width: int) -> Tensor:
    return F.layer_norm(x, (width,), weight, bias)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    is_seen = torch.arange(k.size(2), device=k.device) < k.size(2) - 5
    return F.scaled_dot_product_attention(q, k, v, attn_mask=is_seen[None, None, None])


def _spectrum(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(x)
    return spectrum.real.square() + spectrum.imag.square()


def _fft_convolution(x: Tensor, response: Tensor, *, size: int) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x, n=size) * torch.fft.rfft(response, n=size), n=size)


def _ctc(logits: Tensor) -> Tensor:
    num_frames, num_rows, _ = logits.shape
    targets = torch.arange(1, 1 + 6 * num_rows, device=logits.device).view(num_rows, 6)
    input_lengths, target_lengths = (torch.full((num_rows,), size, device=logits.device) for size in (num_frames, 6))
    return F.ctc_loss(logits.log_softmax(-1), targets, input_lengths, target_lengths, reduction="none")


def _cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
