"""The section of DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054), and what DeepSpeed is told by it."""

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field

from core.config.schema import section

Elements = Annotated[int, Field(ge=1)]

NEEDS_STAGE = {
    "offload_optimizer": (1, 2, 3),
    "overlap_comm": (1, 2, 3),
    "reduce_bucket_size": (1, 2, 3),
    "allgather_bucket_size": (1, 2),
    "prefetch_bucket_size": (3,),
    "param_persistence_threshold": (3,),
}


@section
class ZeroConfig:
    """The settings of strategy deepspeed. Sizes are in elements; null is DeepSpeed's own default.

    `stage`: 0 a replica a rank; sharded over the ranks are at 1 the optimizer, at 2 gradients too, at 3 parameters too.
    `adam`: deepspeed is its own kernel, built at first use, or an error; torch needs nothing; auto takes DeepSpeed's
    where there is a GPU and it can be built. SGD, and stage 0, are always torch's.
    `offload_optimizer`: its states and its work on the host. `communication`: what gradients travel in.
    `wall_clock_breakdown`: DeepSpeed prints the times that it measures, for which the host waits.
    """

    stage: Literal[0, 1, 2, 3] = 0
    adam: Literal["auto", "deepspeed", "torch"] = "auto"
    offload_optimizer: bool = False
    communication: Literal["fp32", "bf16"] = "fp32"
    overlap_comm: bool | None = None
    reduce_bucket_size: Elements | None = None
    allgather_bucket_size: Elements | None = None
    prefetch_bucket_size: Elements | None = None
    param_persistence_threshold: Annotated[int, Field(ge=0)] | None = None
    wall_clock_breakdown: bool = False

    def __post_init__(self) -> None:
        defaults = {key.name: key.default for key in fields(self)}
        for key, stages in NEEDS_STAGE.items():
            value = getattr(self, key)
            if value != defaults[key] and self.stage not in stages:
                needed = " or ".join(map(str, stages))
                raise ValueError(f"{key}={value} needs stage {needed}: set that, or leave {key} out")
        if self.adam == "deepspeed" and self.stage == 0:
            raise ValueError("adam=deepspeed needs stage 1, 2 or 3: stage 0 skips a bad update on the device")


def library_config(config: ZeroConfig, *, max_norm: float | None, num_trained: int) -> dict[str, Any]:
    """Return the JSON that DeepSpeed is given, for a model with so many trained elements.

    No more precision than fp32: forward runs under autocast instead, so that neither the initial weights nor the
    gradients that are added up are rounded, as they are in DeepSpeed's own 16-bit modes.
    """
    zero: dict[str, Any] = {"stage": config.stage}
    if config.stage:
        # A buffer of that size is held; one larger than the model would stay empty.
        zero["reduce_bucket_size"] = min(config.reduce_bucket_size or 500_000_000, num_trained)
    if config.overlap_comm is not None:
        zero["overlap_comm"] = config.overlap_comm
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if config.allgather_bucket_size is not None:
        zero["allgather_bucket_size"] = config.allgather_bucket_size
    if config.prefetch_bucket_size is not None:
        zero["stage3_prefetch_bucket_size"] = config.prefetch_bucket_size
    if config.param_persistence_threshold is not None:
        zero["stage3_param_persistence_threshold"] = config.param_persistence_threshold
    return {
        "train_micro_batch_size_per_gpu": 1,  # the loop counts and scales; DeepSpeed is told where a step ends
        "gradient_accumulation_steps": 1,
        # Stage 0 leaves the norm to its caller, and does not tell it.
        "gradient_clipping": (max_norm or 0.0) if config.stage else 0.0,
        "communication_data_type": config.communication,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": config.wall_clock_breakdown,
        "steps_per_print": None,
    }
