"""Dots back for underscores, by the base's module list and nothing else: `cross_attn` and `q_linear` have their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

from parity.lora.loaded import Target
from parity.lora.problems import Problem, error, some, warning

_WRAPPERS = ("", "diffusion_model_", "model_diffusion_model_", "transformer_", "model_", "net_", "dit_", "unet_")
Resolved = tuple[dict[str, Target], list[Problem], bool]


def resolved(targets: Mapping[str, Target], underscored: bool, modules: Collection[str] | None) -> Resolved:
    """Return the targets by dotted module names where the base's modules are known, and whether they are not.

    What fits no module keeps its name, so that a check finds it missing.
    """
    if not underscored:
        return dict(targets), [], False
    if modules is None:
        text = "module names have underscores for dots: name the base with --base to resolve them"
        return dict(targets), [warning("underscored_names", text)] if targets else [], True
    table = _by_underscored(modules)
    out: dict[str, Target] = {}
    ambiguous = []
    for name, target in targets.items():
        found = _found(name, table)
        module = found[0] if len(found) == 1 else name
        ambiguous += [f"{name} ({' or '.join(found)})"] if len(found) > 1 else []
        out[module] = replace(target, module=module)
    return out, [error("ambiguous_name", f"these fit several modules: {some(ambiguous)}")] if ambiguous else [], False


def flattened(module: str) -> str:
    """Return a module's name with underscores for dots."""
    return module.replace(".", "_")


def _by_underscored(modules: Collection[str]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        table[flattened(module)].append(module)
    return table


def _found(name: str, table: Mapping[str, list[str]]) -> list[str]:
    """Look a name up as it is or behind a trainer's prefix; a mere ending may be another layer's name."""
    whole = flattened(name)
    starts = [whole, whole.partition("lora_")[2]]
    rests = [start.removeprefix(wrapper) for start in starts if start for wrapper in _WRAPPERS]
    return next((table[rest] for rest in rests if rest in table), [])
