"""How full and how busy the hardware is, for the record of a step: no sync, no dependency beyond the driver."""

import ctypes
import resource
import sys
from functools import cache

import torch

from core import flops
from core.rundir.processes import GIB


def hardware_metrics(device: torch.device) -> dict[str, float]:
    """Return this process's `peak_memory_gib`; on a GPU, `gpu_memory_gib` of all processes, `gpu_utilization`."""
    if device.type != "cuda":
        unit = 1 if sys.platform == "darwin" else 1024
        return {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
    found = {"peak_memory_gib": torch.cuda.max_memory_reserved(device) / GIB}
    handle = _nvml_device(torch.cuda.get_device_properties(device).uuid)
    if handle is not None:
        library, nvml_device = handle
        memory, use = _Memory(), _Utilization()
        if library.nvmlDeviceGetMemoryInfo(nvml_device, ctypes.byref(memory)) == 0:
            found["gpu_memory_gib"] = memory.used / GIB
        if library.nvmlDeviceGetUtilizationRates(nvml_device, ctypes.byref(use)) == 0:
            found["gpu_utilization"] = use.gpu / 100
    return found


@cache
def peak_flops(device: torch.device) -> float | None:
    """Return a GPU's dense bf16 operations a second by its data sheet; None for a CPU and what the table lacks."""
    return flops.peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _Utilization(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint) for name in ("gpu", "memory")]


@cache
def _nvml_device(uuid: object) -> tuple[ctypes.CDLL, ctypes.c_void_p] | None:
    """Return the driver's management library and its handle of a device, whatever CUDA_VISIBLE_DEVICES says."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    nvml_device = ctypes.c_void_p()
    name = str(uuid) if str(uuid).startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
    if library.nvmlInit_v2() != 0:
        return None
    if library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(nvml_device)) != 0:
        return None
    return library, nvml_device
