"""What is said once for a whole file: doubtful alphas, keys that change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from parity.lora.formats.keys import COMPONENTS, Key
from parity.lora.loaded import KeyState, Target
from parity.lora.problems import Problem, error, some, warning

BIAS_BESIDE = frozenset({"peft", "diffusers"})
"""Dialects whose loaders keep a bias of B beside the layer, so that the layer needs none of its own."""
_LEFT_OUT = {"unsupported"}


@dataclass(frozen=True)
class Habits:
    """How the tools of a dialect read it.

    Args:
        honoured: where its loaders look for alpha; elsewhere it is told that they do not.
        zero_is_rank: whether alpha 0 means alpha = r.
        scaled: False where B @ A is the change itself, whatever rank and alpha say.
    """

    honoured: frozenset[str] = frozenset({"tensor", "argument", "assumed"})
    zero_is_rank: bool = False
    scaled: bool = True


def _about_origins(origins: Counter[str], given: float | None) -> Iterator[Problem]:
    if assumed := origins["assumed"]:
        text = f"no alpha for {assumed} of {origins.total()} targets: alpha = r is assumed, scaling 1"
        yield warning("scaling_assumed", f"{text}; if the training had another, give it with --lora-alpha")
    if origins["tensor"] and origins.total() > origins["tensor"]:
        text = f"{origins['tensor']} of {origins.total()} targets have an alpha of their own, the others have none"
        yield warning("partial_alpha", text)
    if given is not None and not origins["argument"]:
        yield warning("argument_ignored", f"--lora-alpha {given:g} was not needed: the file has its own alpha")


def about_alphas(targets: Sequence[Target], habits: Habits, given: float | None) -> Iterator[Problem]:
    """Say what is doubtful in where the scaling came from and in alpha itself; `given` is the caller's alpha."""
    yield from _about_origins(Counter(target.scaling_from for target in targets), given)
    zero = [target.module for target in targets if target.lora_alpha == 0]
    if zero:
        means = "alpha = r in this dialect, while some loaders switch it off" if habits.zero_is_rank else "no change"
        yield warning("alpha_zero", f"alpha is 0 for {len(zero)} targets: it means {means}; first: {zero[0]}")
    broken = [t for t in targets if t.lora_alpha is not None and t.scaling_from != "assumed" and t.lora_alpha % 1]
    if broken:
        text = f"alpha is no whole number for {len(broken)} targets, first {broken[0].lora_alpha:g} of"
        yield warning("fractional_alpha", f"{text} {broken[0].module}: loaders that call int() on it scale otherwise")
    away = [t for t in targets if t.scaling_from not in habits.honoured and t.scaling not in (0, 1)]
    if away:
        text = f"alpha stands in the {away[0].scaling_from}, where loaders of this dialect do not look"
        yield warning("alpha_elsewhere", f"{text}: they apply {1 / away[0].scaling:.3g} times the change")


def about_keys(states: Mapping[str, KeyState], keys: Sequence[Key], prefix: str) -> Iterator[Problem]:
    """Say which keys change nothing, and why; `prefix` is that of the component that was read."""
    unexpected = [key for key, state in states.items() if state == "unexpected"]
    if unexpected:
        text = f"{len(unexpected)} of {len(keys)} keys are unknown and change nothing: {some(unexpected)}"
        yield warning("unexpected_keys", text)
    left = [key for key in keys if states.get(key.key) == "unsupported"]
    others = [key.prefix for key in left if key.prefix in COMPONENTS and key.prefix != prefix]
    for other, count in Counter(others).items():
        text = f"{count} keys are of another component, {other!r}"
        yield warning("other_component", f"{text}; read it with --prefix {other}")
    named = [key.key for key in left if key.role in _LEFT_OUT and key.prefix not in others]
    if named:
        yield warning("unsupported_keys", f"{len(named)} keys are known but not taken over: {some(named)}")
    if scales := [key.key for key in left if key.role == "scale"]:
        text = f"{len(scales)} keys hold scales of stored factors, without which the change is wrong: {some(scales)}"
        yield error("scaled_storage", text)
