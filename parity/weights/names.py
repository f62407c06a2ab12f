"""What names of tensors say: stacks of blocks, templates, the role of a tensor in words of the field."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

Shapes = Mapping[str, torch.Size]
PARAMETERS = ("weight", "bias")
_PROJECTIONS = {word: word[0] for word in ("q", "k", "v", "query", "key", "value")}

_ROLES: tuple[tuple[str, str], ...] = (
    ("qkv", r"(to_|w_?|in_)?qkv(_proj|_linear|_proj_in)?|in_proj|c_attn|query_key_value"),
    ("kv", r"(to_|w_?)?kv(_proj|_linear)?"),
    ("qk_norm", r"(norm_?[qk]|[qk]_?(layer)?norm)(_\w+)?"),
    ("q", r"(to_|w_?)?q(_proj|_linear|uery)?"),
    ("k", r"(to_|w_?)?k(_proj|_linear|ey)?"),
    ("v", r"(to_|w_?)?v(_proj|_linear|alue)?"),
    ("o", r"(to_|w_?)?o(ut)?(_proj|_linear|put)?|proj|c_proj"),
    ("modulation", r"ada_?ln\w*|\w*modulation\w*|scale_shift_table|\w*_mod"),
    ("gate", r"w1|gate(_proj)?"),
    ("up", r"w3|fc1|up(_proj)?|linear_?1|fc_in"),
    ("down", r"w2|fc2|down(_proj)?|linear_?2|fc_out"),
)
_GROUPS: tuple[tuple[str, str], ...] = (
    ("cross", r"cross_?attn|cross_attention|attn2|\w*crossattn\w*"),
    ("self", r"self_?attn|self_attention|attn1|attn|attention"),
    ("ffn", r"ffn|ff|mlp|feed_?forward"),
    ("text", r"\w*(caption|text|y_embed|txt)\w*"),
    ("time", r"\w*(time|t_embed|timestep)\w*"),
    ("patch", r"patch\w*|x_embed\w*|img_in"),
    ("final", r"final\w*|head|proj_out|output"),
    ("norm", r"\w*norm\w*|ln_?\w*"),
)


@dataclass(frozen=True)
class Stack:
    """Blocks of one list of modules.

    Args:
        prefix: what stands before the number: `blocks`.
        count: how many blocks.
        tensors: shape by the rest of the key, in the first block.
        irregular: blocks whose tensors or shapes differ from the first's.
        glued: whether the number follows the prefix without a dot: `blocks.block0`.
    """

    prefix: str
    count: int
    tensors: Mapping[str, torch.Size]
    irregular: tuple[int, ...]
    glued: bool = False

    @property
    def start(self) -> str:
        """What stands before the number, with its dot."""
        return self.prefix if self.glued or not self.prefix else f"{self.prefix}."


def stacks_of(shapes: Shapes) -> tuple[Stack, ...]:
    """Find the stacks: numbers 0, 1, 2, ... after one prefix, with the same tensors behind; the outermost ones."""
    held: dict[tuple[str, bool], dict[int, dict[str, torch.Size]]] = defaultdict(lambda: defaultdict(dict))
    for key, shape in shapes.items():
        for found in re.finditer(r"(?:^|\.)([A-Za-z_]*)(\d+)\.", key):
            prefix = key[: found.start(2)] if found[1] else key[: found.start()]
            held[prefix, bool(found[1])][int(found[2])][key[found.end() :]] = shape
    found_stacks: list[Stack] = []
    for (prefix, glued), blocks in sorted(held.items(), key=lambda item: (item[0][0].count("."), item[0][1])):
        inside = any(re.match(rf"{re.escape(stack.start)}\d+\.", f"{prefix}.") for stack in found_stacks)
        if not inside and _is_stack(blocks) and (not glued or len(blocks[0]) > len(PARAMETERS)):
            found_stacks.append(_stack(prefix, blocks, glued))
    return tuple(found_stacks)


def _is_stack(blocks: Mapping[int, Mapping[str, torch.Size]]) -> bool:
    first = blocks.get(0, {})
    if sorted(blocks) != list(range(len(blocks))) or len(blocks) < 2:
        return False
    alike = all(len(first.keys() & other.keys()) * 2 >= len(first) for other in blocks.values())
    same = all(dict(first) == dict(other) for other in blocks.values())
    return alike and (len(first) > len(PARAMETERS) or same)


def _stack(prefix: str, blocks: Mapping[int, Mapping[str, torch.Size]], glued: bool) -> Stack:
    irregular = tuple(number for number in sorted(blocks) if dict(blocks[number]) != dict(blocks[0]))
    return Stack(prefix, len(blocks), dict(blocks[0]), irregular, glued)


def templated(key: str, stacks: Iterable[Stack]) -> tuple[str, int | None]:
    """Return the key with its block's number as `*`, and the number; None outside stacks.

    >>> stack = Stack("blocks", 2, {}, ())
    >>> templated("blocks.7.ffn.0.weight", [stack])
    ('blocks.*.ffn.0.weight', 7)
    """
    for stack in stacks:
        start = stack.start
        number = key[len(start) :].partition(".")[0] if key.startswith(start) else ""
        if number.isdigit():
            return f"{start}*.{key[len(start) + len(number) + 1 :]}", int(number)
    return key, None


@lru_cache(maxsize=1 << 14)
def role_of(key: str) -> tuple[str, ...]:
    """Return what a tensor is in canonical words: `("self", "q", "weight")`; unknown words stay as they are.

    >>> role_of("blocks.0.attn1.to_q.weight"), role_of("blocks.0.self_attn.q.weight")
    (('self', 'q', 'weight'), ('self', 'q', 'weight'))
    """
    words = re.split(r"[./]", key)
    return tuple(_word(word) for word in words if not word.isdigit() and word not in ("*", "blocks", "layers", "net"))


@lru_cache(maxsize=1 << 12)
def _word(word: str) -> str:
    for name, pattern in (*_ROLES, *_GROUPS):
        if re.fullmatch(pattern, word, re.IGNORECASE):
            return name
    return word


def module_role(key: str) -> str:
    """Return the role of the module that holds a parameter: `qkv` for `attn.qkv.weight`, "" where it has none."""
    words = [word for word in re.split(r"[./]", key) if word not in PARAMETERS and not word.isdigit()]
    roles = {name for name, _ in _ROLES}
    return _word(words[-1]) if words and _word(words[-1]) in roles else ""


def unnumbered(key: str) -> str:
    """Return the key with every module's number as `*`.

    >>> unnumbered("blocks.7.ffn.w2.weight")
    'blocks.*.ffn.w2.weight'
    """
    return re.sub(r"(?:(?<=\.)|^)\d+(?=\.)", "*", key)


def projections_of(key: str) -> frozenset[str]:
    """Return which of q, k and v a name names.

    >>> sorted(projections_of("double_blocks.0.norm.query_norm.scale")), sorted(projections_of("attn.to_out"))
    (['q'], [])
    """
    words = re.split(r"[^a-zA-Z0-9]+", key.lower())
    return frozenset(_PROJECTIONS[word] for word in words if word in _PROJECTIONS)


def sibling(key: str, name: str) -> str:
    """Return the key of another parameter of the same module, which a weight is.

    >>> sibling("attn.q.weight", "bias"), sibling("attn.in_proj_weight", "bias")
    ('attn.q.bias', 'attn.in_proj_bias')
    """
    return key.removesuffix("weight") + name if key.endswith("weight") else f"{key.rpartition('.')[0]}.{name}"


def separator_of(keys: Sequence[str]) -> str:
    """Return what separates the parts of most keys."""
    counts = Counter({sep: sum(sep in key for key in keys) for sep in (".", "/")})
    return counts.most_common(1)[0][0] if any(counts.values()) else "none"


def case_of(keys: Sequence[str]) -> str:
    """Return the case of names: snake_case, camelCase or mixed."""
    words = {word for key in keys for word in re.split(r"[./]", key)}
    camel = [word for word in words if re.search(r"[a-z][A-Z]", word)]
    if not camel:
        return "snake_case"
    return "camelCase" if not any("_" in word for word in words) else f"mixed: snake_case, but {sorted(camel)[0]}"


def printable(text: str) -> str:
    """Return a name from a file as a terminal can take it: control characters escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
