"""The gradient norm over all parameters, plain or sharded, and clipping by it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, a scalar on their device; 0 for none.

    Sharded gradients (DTensor) of different meshes are normed mesh by mesh and combined.
    """
    by_mesh: dict[object, list[Tensor]] = {}
    for gradient in gradients:
        mesh = gradient.device_mesh if isinstance(gradient, DTensor) else None
        by_mesh.setdefault(mesh, []).append(gradient)
    norms = [torch.nn.utils.get_total_norm(group) for group in by_mesh.values()]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    if not whole:
        return torch.zeros(())
    return whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole))


def local_parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return what this rank holds of each tensor: its shard of a DTensor, all of a plain one."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def clip_gradients(gradients: Sequence[Tensor], *, max_norm: float | None) -> Tensor:
    """Scale all gradients in place by min(1, max_norm / norm); return the norm before. No host synchronization."""
    norm = gradient_norm(gradients)
    if max_norm is not None and gradients:
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(local_parts(gradients), factor)
    return norm
