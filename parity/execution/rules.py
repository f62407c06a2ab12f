"""What each op does to shadows, read off its schema once and kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from parity.execution.equivalents import EQUIVALENTS, Equivalent

NATIVE_NAMESPACES = frozenset({"aten", "prims", "prim", "_c10d_functional", "c10d_functional"})

_HIDDEN_VIEWS = frozenset({"aten::_unsafe_view", "aten::_reshape_alias", "aten::lift", "aten::set_", "aten::resize_"})


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Ops that only move values: a lattice twin must not round them again.
_MOVES = _words(
    "cat stack clone index index_select copy copy_ repeat neg gather zeros ones full zeros_like ones_like full_like "
    "constant_pad_nd roll flip masked_fill masked_fill_ where index_put index_put_ fill_ zero_ scatter scatter_ "
    "slice_scatter select_scatter topk sort max min relu abs native_dropout masked_scatter expand_copy "
    "new_zeros new_ones new_full empty arange unfold unfold_copy tril triu diag_embed split_with_sizes_copy "
    "view_copy embedding max_pool2d_with_indices maximum minimum clamp nan_to_num conj_physical "
    "floor ceil trunc round sign sgn heaviside floor_ ceil_ trunc_ round_ sign_ floor_divide reflection_pad1d "
    "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d pixel_shuffle "
    "pixel_unshuffle channel_shuffle relu_ abs_ neg_ clamp_ lift_fresh_copy"
)

_COMPARISONS = _words("gt ge lt le eq ne isfinite isinf isnan")
_ROUTING = _words(
    "topk sort argsort argmax argmin max min kthvalue median mode nonzero multinomial searchsorted bucketize"
)

# Random ops whose float arguments give a shape only: the draw is exact.
_DRAWS = _words(
    "rand randn rand_like randn_like randint randint_like uniform_ normal_ bernoulli_ exponential_ random_ "
    "log_normal_ cauchy_ geometric_ bernoulli multinomial randperm"
)
# Random only at dropout above 0, although tagged as random.
_NOT_RANDOM = _words(
    "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable "
    "scaled_dot_product_attention _scaled_dot_product_attention_math native_dropout _flash_attention_forward "
    "_efficient_attention_forward"
)

_CASTS = frozenset({"aten::_to_copy", "prims::convert_element_type"})


@dataclass(frozen=True)
class Rule:
    """How an op is shadowed.

    Args:
        view: the outputs alias inputs; storages keep their shadow, nothing is computed.
        writes: positions of arguments the op writes; names of keyword arguments it writes.
        random: the op draws; its low values are the truth.
        opaque: not an op of torch and without an equivalent: outputs are not trusted.
        scalar: the value leaves torch (`item`).
        moves: the op moves values without rounding.
        decides: the op turns floats into indices or masks.
    """

    name: str
    short: str
    view: bool
    writes: frozenset[int | str]
    random: bool
    opaque: bool
    scalar: bool
    cast: bool
    moves: bool
    decides: bool
    routing: bool
    composite: bool
    equivalent: Equivalent | None


@cache
def rule_of(func: Any) -> Rule:
    """Classify an op overload."""
    if not hasattr(func, "_schema"):  # a higher-order operator (flex_attention, cond)
        return _opaque(str(func))
    schema = func._schema
    namespace, short = schema.name.split("::")
    writes = frozenset(
        key
        for i, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        for key in ((argument.name,) if argument.kwarg_only else (i, argument.name))
    )
    aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    found = EQUIVALENTS.get(schema.name)
    return Rule(
        name=schema.name,
        short=short,
        view=(aliases and not writes) or schema.name in _HIDDEN_VIEWS,
        writes=writes,
        random=torch.Tag.nondeterministic_seeded in func.tags and short not in _NOT_RANDOM and found is None,
        opaque=namespace not in NATIVE_NAMESPACES and found is None,
        scalar=short in ("_local_scalar_dense", "item"),
        cast=schema.name in _CASTS,
        moves=short in _MOVES,
        decides=short in _COMPARISONS or short in _ROUTING,
        routing=short in _ROUTING,
        composite=found is None and _is_composite(func),
        equivalent=found,
    )


def is_draw(rule: Rule) -> bool:
    """Say whether a random op's values depend on its float arguments only through their shape."""
    return rule.short in _DRAWS


def _opaque(name: str) -> Rule:
    return Rule(name, name, False, frozenset(), False, True, False, False, False, False, False, False, None)


def _is_composite(func: Any) -> bool:
    """Say whether the op is only a recipe of other ops, met whole in inference mode; it is taken apart to be seen."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)) and not func._schema.is_mutable


def dropout_on(rule: Rule, args: Any, kwargs: Any) -> bool:
    """Say whether an attention op drops probabilities inside its kernel."""
    if "scaled_dot_product" not in rule.short:
        return False
    biased = ("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")
    position = 5 if rule.short in biased else (4 if rule.short.endswith("overrideable") else 3)
    p = args[position] if len(args) > position else kwargs.get("dropout_p", 0.0)
    return isinstance(p, float) and p > 0.0
