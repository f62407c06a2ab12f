"""What is in a LoRA file, for people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parity.errors import LoraFileError
from parity.lora.base import Base
from parity.lora.check import fit
from parity.lora.loaded import LoadedLora, Target
from parity.lora.problems import Problem, error
from parity.lora.values import Measured, measured, value_problems


@dataclass(frozen=True)
class Inspection:
    """A file, its values measured, with all that is wrong with it; `lora` is None where it could not be read."""

    lora: LoadedLora | None
    values: dict[str, Measured]
    problems: tuple[Problem, ...]
    base: Base | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        lora = self.lora
        states = Counter(lora.keys.values()) if lora else Counter[Any]()
        return {
            "format": lora.format if lora else None, "prefix": lora.prefix if lora else None,
            "target_modules": {m: self._row(t) for m, t in (lora.targets if lora else {}).items()},
            "unexpected_keys": lora.keys_that_are("unexpected") if lora else [],
            "unsupported_keys": lora.keys_that_are("unsupported") if lora else [],
            "keys": {"total": states.total(), **{s: states[s] for s in ("used", "unsupported", "unexpected")}},
            "parameters": self.parameters, "base_parameters": self.base.parameters if self.base else None,
            "problems": [problem.as_dict() for problem in self.problems],
        }  # fmt: skip

    @property
    def parameters(self) -> int:
        """How many numbers of the file belong to the LoRA."""
        return sum(target.parameters for target in self.lora.targets.values()) if self.lora else 0

    def _row(self, target: Target) -> dict[str, Any]:
        return {
            "r": target.r, "lora_alpha": target.lora_alpha, "scaling": target.scaling,
            "scaling_from": target.scaling_from, "delta_norm": self.values[target.module].norm,
            "shape": list(target.shape), "parts": target.parts, "dtype": str(target.dtype).removeprefix("torch."),
            "extras": sorted(target.extras),
        }  # fmt: skip


def inspected(lora: LoadedLora, base: Base | None = None) -> Inspection:
    """Measure every target; with a base say also what does not fit it."""
    values = {module: measured(target) for module, target in lora.targets.items()}
    problems = [*lora.problems, *value_problems(lora, values)]
    if base is not None and lora.targets:
        problems += fit(lora, base).problems
    return Inspection(lora, values, tuple(problems), base)


def unreadable(found: LoraFileError) -> Inspection:
    """Return the inspection of a file that cannot be read."""
    return Inspection(None, {}, (error(found.code, str(found)),))


def rendered(found: Inspection) -> str:
    """Return it in words: what it is, every target, what is wrong."""
    lines = [*_head(found), *_table(found)] if found.lora else []
    return "\n".join([*lines, *told(found.problems)])


def told(problems: tuple[Problem, ...] | list[Problem]) -> list[str]:
    """Return one line or a few for each problem."""
    return [f"{p.severity} [{p.code}]: {p.message}".replace("\n", "\n    ") for p in problems]


def _head(found: Inspection) -> Iterator[str]:
    lora = found.lora
    assert lora is not None
    yield f"format: {lora.format}, prefix {lora.prefix!r}" if lora.prefix else f"format: {lora.format}, no prefix"
    states = Counter(lora.keys.values())
    yield (f"keys: {states.total()} = {states['used']} used, {states['unsupported']} known but not taken over, "
           f"{states['unexpected']} unexpected")  # fmt: skip
    share = f", {100 * found.parameters / found.base.parameters:.2f} % of base" if found.base else ""
    yield f"LoRA parameters {found.parameters:,}{share}"
    ranks = Counter(target.r for target in lora.targets.values() if target.r is not None)
    dtypes = Counter(str(target.dtype).removeprefix("torch.") for target in lora.targets.values())
    yield f"targets: {len(lora.targets)}, r {_counted(ranks)}, stored as {_counted(dtypes)}"


def _counted(counts: Counter[Any]) -> str:
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{value} ({count})" for value, count in counts.most_common()) or "none"


def _table(found: Inspection) -> Iterator[str]:
    assert found.lora is not None
    rows = [("module", "r", "lora_alpha", "scaling", "from", "norm")]
    for module, target in found.lora.targets.items():
        more = f" + {', '.join(sorted(target.extras))}" if target.extras else ""
        rank = "-" if target.r is None else f"{target.parts} x {target.r}" if target.parts > 1 else str(target.r)
        alpha = "-" if target.lora_alpha is None else f"{target.lora_alpha:g}"
        norm = f"{found.values[module].norm:.4g}"
        rows.append((f"{module}{more}", rank, alpha, f"{target.scaling:g}", target.scaling_from, norm))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    yield ""
    yield from ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    yield ""
