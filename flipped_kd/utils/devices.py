"""What a machine computes with: the dtype that "auto" stands for, and the threads of a CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import torch

logger = logging.getLogger(__name__)
# Of mixed precision.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Set by accelerate's and torch's launchers in the processes they start.
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")


def has_bfloat16() -> bool:
    """Whether a CUDA GPU multiplies bfloat16 itself: below compute capability 8 torch emulates it, which is slow."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself (AMX, AVX-512 BF16, or Arm's): a step then takes half the time."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def weights_dtype(device: torch.device, precision: str = "bf16") -> torch.dtype:
    """The dtype to load weights in.

    Args:
        device: where they will be.
        precision: what is computed in; "fp32" wants the weights so, too.
    """
    return torch.bfloat16 if device.type == "cuda" and precision != "fp32" and has_bfloat16() else torch.float32


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launched_threads(environment: Mapping[str, str], cores: int) -> int | None:
    """Threads for a process that a launcher has left with one, although there are cores for more; None for others.

    `accelerate launch` and torchrun set OMP_NUM_THREADS=1 unless they are told otherwise, so that a single process on
    a CPU would use one core of many.

    Args:
        environment: of the process.
        cores: that it may use.
    """
    if environment.get("OMP_NUM_THREADS") != "1" or not any(name in environment for name in LAUNCHERS):
        return None
    ranks = max(1, int(environment.get("LOCAL_WORLD_SIZE", "1")))
    return cores // ranks if cores > ranks else None


def use_cpu_threads(asked: int | None = None) -> int:
    """Let torch compute with so many threads on a CPU; what changes is logged.

    Args:
        asked: so many; None gives a launcher's single process its share of the cores, and leaves others as they are.

    Returns:
        The threads that torch uses now.
    """
    threads = asked or launched_threads(os.environ, cpu_cores())
    if threads is not None and threads != torch.get_num_threads():
        logger.info("%d CPU threads instead of %d", threads, torch.get_num_threads())
        torch.set_num_threads(threads)
    return torch.get_num_threads()
