"""Dialects of LoRA files: one file each with `DIALECT`; `read_lora` finds the one a file is written in."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from parity.errors import LoraFileError, UsageError
from parity.lora.formats.file import Dialect, Given, LoraFile, Written
from parity.lora.loaded import LoadedLora
from parity.lora.problems import Problem, error, some

__all__ = ["Dialect", "Given", "LoraFile", "Written", "dialect_of", "dialects", "read_lora", "writers"]


_KINDS = ("LORA", "LOHA", "LOKR")


@cache
def dialects() -> Mapping[str, Dialect]:
    """Return every dialect by name."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    found = [module.DIALECT for module in modules if hasattr(module, "DIALECT")]
    return {dialect.name: dialect for dialect in sorted(found, key=lambda dialect: dialect.name)}


def writers() -> list[str]:
    """Return the names of the dialects that can be written."""
    return [name for name, dialect in dialects().items() if dialect.write is not None]


def writer(name: str) -> Dialect:
    """Return a dialect that can be written.

    Raises:
        UsageError: there is no such dialect, or it is only read.
    """
    if name.lower() not in writers():
        raise UsageError.unknown("format to write", name, writers())
    return dialects()[name.lower()]


def dialect_of(file: LoraFile) -> Dialect:
    """Return the dialect a file is written in.

    Raises:
        LoraFileError: none, or several in one file.
    """
    found = [dialect for dialect in dialects().values() if dialect.matches(file)]
    if len(found) > 1:
        names = ", ".join(dialect.name for dialect in found)
        raise LoraFileError("mixed_dialects", f"the file mixes {names}: no loader reads both\nsplit it, or convert one")
    if not found:
        raise _nothing_in(file)
    return found[0]


def _check_prefix(file: LoraFile) -> None:
    prefix = file.given.prefix
    if prefix and file.keys and not any(key.key.startswith(prefix) for key in file.keys):
        text = f"no key begins with {prefix!r}; the first is {file.keys[0].key}"
        raise LoraFileError("unknown_prefix", text)


def _nothing_in(file: LoraFile) -> LoraFileError:
    if not file.keys:
        return LoraFileError("no_tensors", "the file holds no tensors")
    keys = some([key.key for key in file.keys])
    if any(key.role not in ("plain", "base_layer") for key in file.keys):
        return LoraFileError("unknown_dialect", f"no known dialect spells its keys so: {keys}")
    if all(key.key.rpartition(".")[2] in ("weight", "bias") or "." in key.key for key in file.keys):
        return LoraFileError("base_checkpoint", f"this is a model's checkpoint, no LoRA: {keys}")
    return LoraFileError("unknown_dialect", f"none of its {len(file.keys)} keys is one of a LoRA: {keys}")


def read_lora(file: LoraFile) -> LoadedLora:
    """Read a file in whichever dialect it is written; what is wrong with it is among its problems.

    Raises:
        LoraFileError: no dialect, or several, claim it.
    """
    kind = str((file.sidecar or {}).get("peft_type") or "LORA").upper()
    if kind not in _KINDS:
        text = f"adapter_config.json says {kind}, which is no low-rank change of weights that can be read"
        raise LoraFileError("unsupported_kind", f"{text}\nread: {', '.join(_KINDS)}")
    _check_prefix(file)
    dialect = dialect_of(file)
    lora = dialect.read(file)
    problems: list[Problem] = list(lora.problems)
    if not lora.targets and not any(problem.severity == "error" for problem in problems):
        problems.append(error("no_targets", "no module is changed: loaders would go on without a word"))
    return LoadedLora(
        lora.format, lora.prefix, lora.targets, lora.keys, tuple(problems), lora.underscored
    )
