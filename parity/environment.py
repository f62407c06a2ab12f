"""What a verdict depends on besides the models: torch, device, switches that change kernels."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import torch

import parity


def describe_environment() -> dict[str, Any]:
    """Return what a record keeps of the environment."""
    gpu = torch.cuda.is_available()
    return {
        "parity": parity.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "switches": describe_switches(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k in _VARIABLES},
    }


def versions() -> dict[str, str]:
    """Return what a recording says of where it was made."""
    return {"torch": torch.__version__, "python": platform.python_version(), "parity": parity.__version__}


_VARIABLES = frozenset(
    {"CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "TORCHDYNAMO_DISABLE", "ONEDNN_MAX_CPU_ISA",
     "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"}
)  # fmt: skip


def describe_switches() -> dict[str, Any]:
    """Return torch's switches that change what a kernel computes."""
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "bf16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "fp16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "sdp_flash": torch.backends.cuda.flash_sdp_enabled(),
        "sdp_mem_efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "sdp_math": torch.backends.cuda.math_sdp_enabled(),
    }
