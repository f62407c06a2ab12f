"""What on this machine changes or prevents a verdict, and how to mend it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from parity.environment import describe_environment
from parity.errors import ParityError
from parity.gate.baseline import device_kind
from parity.inventory import Project, describe_pair

_FREE_WANTED, _FREE_NEEDED = 2e9, 50e6


@dataclass(frozen=True)
class Check:
    """One finding: `status` is ok, warning or error; `mend` says what to do where it is not ok."""

    name: str
    status: str
    found: str
    mend: str = ""


def examine(project: Project) -> list[Check]:
    """Check Python, torch, the GPU, kernels and switches, the pairs' sources, and the disk."""
    return [
        *_python(sys.version_info[:3]),
        *_torch(torch.__version__),
        *_gpu(),
        *environment_checks(describe_environment()),
        *_suite(),
        *_sources(project),
        *disk_checks(shutil.disk_usage(project.root).free),
        writable_check(project.root / "reports"),
    ]


def worst(checks: Sequence[Check]) -> str:
    """Return the gravest status among checks."""
    return max((c.status for c in checks), key=("ok", "warning", "error").index, default="ok")


def as_records(checks: Sequence[Check]) -> list[dict[str, str]]:
    """Return checks as plain mappings."""
    return [asdict(check) for check in checks]


def render_checks(checks: Sequence[Check], width: int = 80) -> str:
    """Render a line a check, and below it how to mend what is not ok; what mends is never broken, to be copied."""
    lines, name = [], max((len(check.name) for check in checks), default=0)
    for check in checks:
        head = f"{check.status:<9}{check.name:<{name}}  "
        found = textwrap.wrap(check.found, max(20, width - len(head)), break_on_hyphens=False) or [""]
        lines += [f"{head}{found[0]}", *(f"{'':<{len(head)}}{more}" for more in found[1:])]
        if check.status != "ok" and check.mend:
            lines.append(f"{'':<9}mend: {check.mend}")
    return "\n".join(lines)


def environment_key() -> str:
    """Return one word that is another where kernels may round otherwise: for the cache of a CI service."""
    around = describe_environment()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = {name: around[name] for name in ("torch", "cuda", "gpu", "cpu_capability", "switches", "variables")}
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=4).hexdigest()
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{device_kind(device, around)} torch {around['torch']} {digest}").strip("-")


def _python(version: tuple[int, ...]) -> Iterator[Check]:
    shown = ".".join(map(str, version))
    status = "ok" if version >= (3, 10) else "error"
    yield Check("python", status, shown, "Python 3.10 or later is needed: make a virtual environment of a newer one")


def _torch(version: str) -> Iterator[Check]:
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    status = "ok" if numbers >= (2, 4) else "error"
    yield Check("torch", status, f"{version}, {build}, {torch.get_num_threads()} threads", 'pip install "torch>=2.4"')


def _gpu() -> Iterator[Check]:
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        yield Check("gpu", "ok", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GB")
    elif torch.version.cuda:
        yield Check("gpu", "warning", "torch is built for CUDA and sees no GPU", "see what the driver says: nvidia-smi")
    else:
        yield Check("gpu", "ok", "none: pairs run on the CPU, in their small sizes")


def environment_checks(environment: Mapping[str, Any]) -> Iterator[Check]:
    """Check the switches that change what kernels compute, as `describe_environment` tells them."""
    switches, gpu = environment["switches"], environment["gpu"] is not None
    yield from _attention(switches)
    yield _tf32(switches, gpu)
    yield from _overridden(environment["variables"])
    yield _reduced(switches, gpu)


def _attention(switches: Mapping[str, Any]) -> Iterator[Check]:
    on = [name for name in ("flash", "mem_efficient", "math") if switches[f"sdp_{name}"]]
    packages = [name for name in ("flash_attn", "xformers", "sageattention") if importlib.util.find_spec(name)]
    found = f"torch's {', '.join(on) or 'none'}; packages: {', '.join(packages) or 'none'}"
    mend = "torch.backends.cuda.enable_math_sdp(True); without it some shapes and masks have no kernel"
    yield Check("attention", "ok" if "math" in on else "warning", found, mend)


def _tf32(switches: Mapping[str, Any], gpu: bool) -> Check:
    found = (
        f"float32 matmul {switches['float32_matmul_precision']}, TF32 in matmul {_on(switches['tf32_matmul'])}, "
        f"in convolutions {_on(switches['tf32_cudnn'])}"
    )
    if switches["float32_matmul_precision"] != "highest" or (gpu and switches["tf32_matmul"]):
        return Check("tf32", "warning", found, "torch.set_float32_matmul_precision('highest') before the models run")
    if gpu and switches["tf32_cudnn"]:
        mend = "torch.backends.cudnn.allow_tf32 = False, or float32 convolutions (patch embeddings) round to TF32"
        return Check("tf32", "warning", found, mend)
    return Check("tf32", "ok", found)


def _overridden(variables: Mapping[str, str]) -> Iterator[Check]:
    """Check for variables that turn TF32 on behind torch's own switches."""
    for name in ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"):
        if variables.get(name) == "1":
            yield Check("tf32 override", "warning", f"{name}=1 decides, whatever torch's switches say", f"unset {name}")


def _reduced(switches: Mapping[str, Any], gpu: bool) -> Check:
    reduced = switches["bf16_reduced_precision_reduction"]
    found = f"split sums of bfloat16 products in reduced precision: {_on(reduced)}" + ("" if gpu else " (GPU only)")
    mend = "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False, on both sides or neither"
    return Check("bf16 matmul", "warning" if gpu and reduced else "ok", found, mend)


def _on(value: object) -> str:
    return "on" if value else "off"


def _suite() -> Iterator[Check]:
    absent = [name for name in ("pytest", "xdist", "hypothesis") if importlib.util.find_spec(name) is None]
    found = f"not installed: {', '.join(absent)}" if absent else "pytest, xdist and hypothesis are installed"
    yield Check("suite", "warning" if absent else "ok", found, 'pip install "dit-parity[suite]"')


def _sources(project: Project) -> Iterator[Check]:
    try:
        pairs = project.pairs()
    except ParityError as error:
        first, *rest = str(error).splitlines()
        yield Check("pairs", "error", first, "; ".join(rest) or "mend the pair file, then run this again")
        return
    for pair in pairs.values():
        missing = describe_pair(pair, project.root)["missing"]
        for side, command in missing.items():
            found = f"the {side}'s source is not here: its cases are skipped"
            yield Check(f"pair {pair.name}", "warning", found, command)
        if not missing:
            yield Check(f"pair {pair.name}", "ok", "both sources are here")


def disk_checks(free: float) -> Iterator[Check]:
    """Check the free bytes where records and traces go."""
    status = "ok" if free >= _FREE_WANTED else "warning" if free >= _FREE_NEEDED else "error"
    yield Check("disk", status, f"{free / 1e9:,.1f} GB free", "free some space: a record takes MBs, a trace GBs")


def writable_check(folder: Path) -> Check:
    """Check that records can be written where runs write them by default."""
    there = next(f for f in (folder, *folder.parents) if f.exists())
    fits = there.is_dir() and os.access(there, os.W_OK)
    found = f"{folder.name}/ can be written" if fits else f"{folder.name}/ cannot be written"
    return Check("reports", "ok" if fits else "error", found, f"chmod u+w {there}, or pass --parity-report DIR")
