"""How a model is spread over ranks and what it computes in: the section `parallel`, checked against the device."""

import logging
from dataclasses import field
from typing import Literal

import torch

from core.config.schema import section
from core.distributed import Ranks
from core.parallel.deepspeed.zero import ZeroConfig
from core.parallel.loss_scale import LossScaleConfig

logger = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@section
class ParallelConfig:
    """The way that one model is spread over ranks.

    `strategy`: ddp (a replica a rank), fsdp2 (parameters sharded over the ranks), deepspeed (as `zero` says).
    `precision`: fp32; bf16 or fp16 compute over fp32 parameters and optimizer states; auto: see `resolve_precision`.
    `loss_scale` counts for fp16 alone and `zero` for deepspeed alone: another strategy is one word away.
    """

    strategy: Literal["ddp", "fsdp2", "deepspeed"] = "ddp"
    precision: Precision = "fp32"
    activation_checkpointing: bool = False
    compile: bool = False
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)


def resolve_precision(precision: Precision, ranks: Ranks) -> Precision:
    """Replace `auto` by bf16 if all ranks' GPUs compute in it, else fp16; fp32 on a CPU. All ranks together."""
    if precision != "auto":
        return precision
    if ranks.device.type != "cuda":
        return "fp32"
    return "bf16" if all(ranks.gather(torch.cuda.is_bf16_supported(including_emulation=False))) else "fp16"


def check_precision(config: ParallelConfig, ranks: Ranks) -> None:
    """Raise ValueError where the device cannot compute in it."""
    if config.precision == "fp16" and ranks.device.type == "cpu":
        raise ValueError("parallel.precision=fp16 needs a GPU; use fp32 or bf16 on a CPU")
    if ranks.is_first and config.precision != "fp16" and config.loss_scale != LossScaleConfig():
        logger.info("parallel.loss_scale is left aside: it counts for precision fp16, not %s", config.precision)
