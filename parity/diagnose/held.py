"""Weights that are not what they should be, with what they should be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from parity.diagnose.signature import HeldWeight
from parity.weights.load import WeightComparison, tensors_of
from parity.weights.plan import KeyPlan


class HeldWeights:
    """Weights that are not what they should be, with what they should be; a key map is only read where there are such.

    Args:
        session: the pair's, with the native's model.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._known: dict[str, HeldWeight] = {}

    def of(self, wrong: WeightComparison) -> HeldWeight:
        """Return a wrong weight, with what it should be."""
        name = wrong.native_key
        if name not in self._known:
            held = self._held[name]
            expected = self._plan.native_tensor(name, self._source).to(held.device)
            self._known[name] = HeldWeight(name, held, expected, wrong.swapped_with or self._elsewhere(name, held))
        return self._known[name]

    def _elsewhere(self, name: str, held: Tensor) -> str | None:
        """Name the tensor of another block whose values a weight holds."""
        others = (k for k in self._held if k != name and _numberless(k) == _numberless(name))
        return next((k for k in others if self._is(k, held)), None)

    def _is(self, name: str, held: Tensor) -> bool:
        value = self._plan.native_tensor(name, self._source)
        return value.shape == held.shape and torch.equal(value.to(held.device, held.dtype), held)

    @cached_property
    def _held(self) -> dict[str, Tensor]:
        return tensors_of(self._session.native.model)

    @cached_property
    def _source(self) -> Mapping[str, Tensor]:
        source: Mapping[str, Tensor] = self._session.reference_tensors
        return source

    @cached_property
    def _plan(self) -> KeyPlan:
        key_map = self._session.pair.key_map(self._session.build)
        plan: KeyPlan = key_map.plan(
            {k: v.shape for k, v in self._source.items()}, {k: v.shape for k, v in self._held.items()}
        )
        return plan


def _numberless(key: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", key)
