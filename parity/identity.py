"""What a recording is of: everything that, if it were different, would make it the recording of something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from parity.environment import describe_environment
from parity.errors import RecordError, SourceMissing
from parity.execution.tap import Point, Tap
from parity.io.hashing import hash_weights
from parity.io.sources import digest_of_code
from parity.io.tree import digests_of
from parity.loaded import LoadedSide
from parity.lora.adapter import LoraAdapter
from parity.pair import Build, ModelPair, in_variant
from parity.stage import DrawOf, Options

_CODE = ("parity.execution", "parity.live", "parity.loaded")
_HERE = ("torch", "cuda", "gpu", "cpu_capability", "threads", "switches")
"""Facts of an environment that change what a kernel computes."""

Identity = dict[str, Any]


def identity_of(
    pair: ModelPair, build: Build, options: Options, taps: Sequence[Tap], side: Mapping[str, Any], *,
    adapter: LoraAdapter | None, native_dtypes: Mapping[str, torch.dtype], role: str = "reference",
) -> Identity:  # fmt: skip
    """Return the identity of what one side's model computes for a pair.

    Args:
        pair: the pair.
        build: what was built.
        options: how it is run; seed, draws and variant belong to the draws.
        taps: the pair's taps.
        side: what a record keeps of the side: source with commit, class, digest of the weights.
        adapter: the LoRA.
        native_dtypes: where the native is taken to be coarser.
        role: "reference" or "native".
    """
    around = describe_environment()
    return {
        **asked_for(pair, build, options, taps, role),
        "weights": side["weights"],
        "source": dict(side["source"]),
        "lora": None if adapter is None else digest_of_lora(adapter),
        "native_dtypes": {name: str(d).removeprefix("torch.") for name, d in sorted(native_dtypes.items())},
        "parity": around["parity"],
        "code": digest_of_code(*_CODE),
        **{name: around[name] for name in _HERE},
    }


def asked_for(pair: ModelPair, build: Build, options: Options, taps: Sequence[Tap], role: str) -> Identity:
    """Return the part of an identity that is known without the model: what is asked for."""
    return {
        "pair": pair.name,
        "side": role,
        "size": build.size,
        "dtype": str(build.dtype).removeprefix("torch."),
        "device": build.device.type,
        "weights_seed": build.seed,
        "shadow_dtype": str(options.shadow_dtype).removeprefix("torch."),
        "twins": options.twins,
        "taps": [_described(tap, role) for tap in taps],
        "lanes": {name: [_described(t, role) for t in in_variant(pair, name).taps(build)] for name in pair.lanes},
    }


def key_of(identity: Identity) -> str:
    """Return a short name of an identity: where a cache keeps what was recorded under it."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def code_of(loaded: LoadedSide) -> str:
    """Return a digest of the files that hold a side's modules and what builds and calls it."""
    side = loaded.side
    parts: list[Any] = [side.build, side.call, side.output, side.around_call, side.around_session, side.apply_lora]
    names = {type(module).__module__ for module in loaded.model.modules()}
    for part in parts:
        while isinstance(part, partial):
            part = part.func
        names.add(str(getattr(part, "__module__", None)))
    digests = {}
    for name in sorted(n for n in names if n.partition(".")[0] not in ("torch", "contextlib", "builtins")):
        with suppress(SourceMissing):
            digests[name] = digest_of_code(name)
    return hashlib.blake2b(str(digests).encode(), digest_size=16).hexdigest()


def check_same(wanted: Identity, found: Identity, where: str) -> None:
    """Check that a recording is of what is wanted.

    Raises:
        RecordError: it is not; names the first field that differs.
    """
    for field, value in wanted.items():
        held = found.get(field)
        if json.loads(json.dumps(value)) != held:
            raise RecordError(
                f"{where} was recorded with another {field}\n"
                f"recorded: {_short(field, held, value)}\nasked for: {_short(field, value, held)}\n"
                "record again, or ask for what was recorded"
            )


def check_inputs(draw: DrawOf, recorded: Mapping[str, str], where: str) -> None:
    """Check that the pair still draws the inputs that were recorded.

    Raises:
        RecordError: an input differs, is missing or new; names it.
    """
    drawn = digests_of(draw.inputs)
    for name in sorted({*drawn, *recorded}):
        if drawn.get(name) != recorded.get(name):
            how = "differs" if name in drawn and name in recorded else "is not in both"
            raise RecordError(
                f"{where}: input {name!r} of {draw.name} {how}: what is wanted is not what was recorded\n"
                "the pair file or its seed changed, or torch draws other numbers here; record again"
            )


def digest_of_lora(adapter: LoraAdapter) -> str:
    """Return a digest of an adapter: targets, matrices, scalings."""
    tensors = {f"{path}.{n}": value for path, t in adapter.targets.items() for n, value in t.tensors().items()}
    scalings = sorted((path, t.scaling) for path, t in adapter.targets.items())
    tensors |= {f"{name} replaced" if c.replaces else f"{name} added": c.value for name, c in adapter.changes.items()}
    return hashlib.blake2b(f"{hash_weights(tensors)}{scalings}".encode(), digest_size=16).hexdigest()


def _described(tap: Tap, role: str) -> list[str]:
    point: Point | None = getattr(tap, role)
    where = "absent" if point is None else f"{point.path} call {point.call}"
    other = tap.native if role == "reference" else tap.reference
    return [tap.name, where, "restarts" if tap.restarts and other is not None else "only seen"]


def _short(field: str, value: Any, other: Any) -> str:
    """Word a field's value, of a long list the first part that differs."""
    if isinstance(value, list) and isinstance(other, list):
        value = next((v for v, o in zip(value, [*other, *[None] * len(value)], strict=False) if v != o), value[-1:])
    return str(value)[:120]
