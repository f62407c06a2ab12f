"""Propose inputs and arguments from two forwards' signatures.

Letters in shapes: B batch, F latent frames, H W latent height and width, S tokens, C channels.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from parity.execution.tap import Inputs
from parity.scaffold.names import weights_of

TEXT_TOKENS, GRID = 16, (4, 8, 16)
"""Sizes of proposed inputs; frames, rows and columns of tokens differ, so that no two axes can be exchanged unseen."""

_CAST = ("latents", "text")
"""Roles that are handed over in the model's dtype; a timestep stays as it is."""


@dataclass(frozen=True)
class Drawn:
    """One proposed input: its name, how it is drawn and in which shape."""

    name: str
    how: str
    shape: tuple[int, ...]

    @property
    def text(self) -> str:
        """The source text that draws it."""
        drawn = {
            "randn": f"torch.randn({', '.join(map(str, self.shape))}, generator=generator)",
            "steps": f"600.0 + 399.0 * torch.rand({self.shape[0]}, generator=generator)",
            "count": str(self.shape[0]),
            "mask": f"(torch.arange({self.shape[-1]}) < {self.shape[-1] - 4}).expand({self.shape[0]}, -1).long()",
        }
        return drawn[self.how]

    def draw(self, generator: torch.Generator) -> Tensor | int:
        """Draw it, as its text says."""
        if self.how == "count":
            return self.shape[0]
        if self.how == "steps":
            return 600.0 + 399.0 * torch.rand(self.shape, generator=generator)
        if self.how == "mask":
            return (torch.arange(self.shape[-1]) < self.shape[-1] - 4).expand(self.shape[0], -1).long()
        return torch.randn(self.shape, generator=generator)


@dataclass(frozen=True)
class Arguments:
    """How a forward is called from the pair's inputs.

    Args:
        given: parameter to input name.
        reshapes: input names whose value gets an axis more (`.unsqueeze(1)`).
        missing: required parameters nothing was found for.
    """

    given: Mapping[str, str]
    reshapes: frozenset[str] = frozenset()
    missing: tuple[str, ...] = ()

    def call(self, model: nn.Module, inputs: Inputs) -> Any:
        """Call the model."""
        dtype = next((p for p in model.parameters() if p.dim() > 1), torch.empty(0)).dtype
        return model(**{name: self._value(key, inputs[key], dtype) for name, key in self.given.items()})

    def _value(self, key: str, value: Any, dtype: torch.dtype) -> Any:
        """Do to an input what `text` says."""
        value = value.to(dtype) if role_of(key) in _CAST else value
        return value.unsqueeze(1) if key in self.reshapes else value

    @property
    def text(self) -> str:
        """The source text of the arguments, latents and text in the model's dtype, timesteps as they are."""
        words = []
        for name, key in self.given.items():
            cast = ".to(dtype)" if role_of(key) in _CAST else ""
            words.append(f'{name}=inputs["{key}"]{cast}{".unsqueeze(1)" if key in self.reshapes else ""}')
        return ", ".join(words)


@dataclass(frozen=True)
class Proposed:
    """Inputs for both sides, and what is missing in words."""

    drawn: tuple[Drawn, ...]
    blanks: tuple[str, ...] = field(default=())

    def draw(self, seed: int = 0) -> dict[str, Any]:
        """Draw the inputs of a seed."""
        generator = torch.Generator().manual_seed(seed)
        return {d.name: d.draw(generator) for d in self.drawn}


def role_of(name: str) -> str:
    """Return what an argument is by its name: latents, timestep, text, text_mask, guidance, or "".

    >>> role_of("encoder_hidden_states"), role_of("hidden_states"), role_of("t"), role_of("encoder_attention_mask")
    ('text', 'latents', 'timestep', 'text_mask')
    """
    words = set(weights_of(name))
    if "mask" in words or "masks" in words:
        return "text_mask" if "text" in words else ""
    for word, role in {"text": "text", "time": "timestep", "sigma": "timestep", "patch": "latents"}.items():
        if word in words:
            return role
    if words and words <= {"seq", "len", "length", "max"}:
        return "seq_len"
    return "latents" if name in ("hidden_states", "img", "sample", "input", "z") else ""


def arguments_of(model: nn.Module, names: Iterable[str]) -> Arguments:
    """Return how a model's forward takes inputs of these names: by the same name, else by the same role."""
    keys = list(names)
    roles = {role_of(key): key for key in reversed(keys) if role_of(key)}
    given: dict[str, str] = {}
    missing = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        key = name if name in keys else roles.get(role_of(name))
        if key is not None and key not in given.values() and parameter.kind is not parameter.POSITIONAL_ONLY:
            given[name] = key
        elif parameter.default is parameter.empty:
            missing.append(name)
    return Arguments(given, missing=tuple(missing) or _unknown(model, given))


def _unknown(model: nn.Module, given: Mapping[str, str]) -> tuple[str, ...]:
    return () if given else ("its arguments",)


def proposed_inputs(reference: nn.Module, native: nn.Module) -> Proposed:
    """Propose inputs for the roles both forwards name; shapes come from the first layers that take them."""
    roles = [_roles(model) for model in (reference, native)]
    both = [role for role in ("latents", "timestep", "text", "text_mask") if all(role in r for r in roles)]
    both += ["seq_len"] if any("seq_len" in r for r in roles) else []
    drawn, blanks = [], []
    for role in both:
        asked = [model for model, named in zip((reference, native), roles, strict=True) if role in named]
        tokens = next((n for model in (reference, native) if (n := _text_tokens(model))), TEXT_TOKENS)
        found = {_drawn(role, model, tokens) for model in asked} - {None}
        if len(found) == 1:
            drawn.append(found.pop())
        else:
            blanks.append(f"{role}: {'its shape is not clear' if not found else 'the sides want different shapes'}")
    return Proposed(tuple(d for d in drawn if d is not None), tuple(blanks))


def _roles(model: nn.Module) -> set[str]:
    return {role_of(name) for name in inspect.signature(model.forward).parameters}


def _text_tokens(model: nn.Module) -> int | None:
    """Return the length a model pads text to: the other side may not pad."""
    held = (getattr(model, name, None) for name in ("text_len", "text_length", "max_text_len"))
    return next((n for n in held if isinstance(n, int) and n > 1), None)


def _drawn(role: str, model: nn.Module, tokens: int) -> Drawn | None:
    if role == "timestep":
        return Drawn(role, "steps", (1,))
    if role == "text_mask":
        return Drawn(role, "mask", (1, tokens))
    if role == "seq_len":
        return Drawn(role, "count", (math.prod(GRID),))
    if role == "text":
        width = _width(model, lambda words: "text" in words and "time" not in words and "mod" not in words)
        return None if width is None else Drawn(role, "randn", (1, tokens, width))
    return _latents(model)


def _width(model: nn.Module, wanted: Callable[[set[str]], bool]) -> int | None:
    """Return the channels the first layer of a role takes. Shapes: its weight [O, I, ...]."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and wanted(set(weights_of(name.rpartition(".")[0]))):
            return int(parameter.shape[1])
    return None


def _latents(model: nn.Module) -> Drawn | None:
    """Return latents [B, C, F, H, W] whose sides are whole numbers of the patch; [B, C, H, W] for a 2-D patch."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            grid = GRID[-len(module.kernel_size) :]
            sides = (n * k for n, k in zip(grid, module.kernel_size, strict=True))
            return Drawn("latents", "randn", (1, module.in_channels, *sides))
        if isinstance(module, nn.Linear) and "patch" in weights_of(name):
            return Drawn("latents", "randn", (1, module.in_features, *GRID))
    return None
