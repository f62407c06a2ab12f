"""The contract of projections, kept by every registered one, and what each is for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parity.errors import UsageError
from parity.numerics.projections import PROJECTIONS, Rows, coherence, project, projection

T, C, N = 96, 24, 4
NAMES = [*PROJECTIONS, "slope_on_branch"]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(groups: int = 1, **changes: Any) -> Rows:
    given: dict[str, Any] = {"heads": N, "upstream": {"branch": draw(8, T, C)}}
    return Rows(draw(7, T, C), torch.arange(T) // (T // groups), groups, **{**given, **changes})


def unit(values: Tensor) -> Tensor:
    centred = values - values.mean(0)
    return centred / centred.square().mean(0).sqrt()


COHERENT: dict[str, Callable[[], Tensor]] = {
    "identity": lambda: draw(2, T, C),
    "channel_mean": lambda: draw(2, 1, C).expand(T, C),
    "channel_slope": lambda: draw(2, 1, C) * unit(rows().values),
    "token_mean": lambda: draw(2, T, 1).expand(T, C),
    "head_mean": lambda: draw(2, N).repeat_interleave(C // N).expand(T, C),
    "slope_on_branch": lambda: draw(2, 1, C) * unit(rows().upstream["branch"]),
}
"""Per projection the structure it is for."""


def size(e: Tensor, name: str, given: Rows | None = None) -> float:
    return float(project(e, given or rows())[name].square().mean().sqrt())


def test_every_projection_has_its_structure_here() -> None:
    assert set(COHERENT) == set(NAMES) == set(project(draw(1, T, C), rows()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("groups", [1, 2])
def test_zero_residual_gives_zero(name: str, groups: int) -> None:
    assert not bool(project(torch.zeros(T, C, dtype=torch.float64), rows(groups))[name].any())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("groups", [1, 2])
def test_projection_is_linear(name: str, groups: int) -> None:
    a, b = draw(1, T, C), draw(2, T, C)
    both = project(2 * a - 3 * b, rows(groups))[name]
    torch.testing.assert_close(both, 2 * project(a, rows(groups))[name] - 3 * project(b, rows(groups))[name])


@pytest.mark.parametrize("name", NAMES)
def test_monotone_under_added_coherent_noise(name: str) -> None:
    noise, structure = draw(1, T, C), COHERENT[name]()
    sizes = [size(noise + amount * structure, name) for amount in (0.0, 1.0, 2.0, 4.0, 8.0)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 3 * sizes[0]


@pytest.mark.parametrize("name", NAMES)
def test_its_own_structure_passes_undiminished(name: str) -> None:
    structure = COHERENT[name]()
    assert size(structure, name) == pytest.approx(float(structure.square().mean().sqrt()), rel=0.2)


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_gives_nan_out(name: str) -> None:
    e = draw(1, T, C)
    e[5, 3] = math.nan
    assert bool(project(e, rows())[name].isnan().any())


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"identity"}))
def test_incoherent_noise_averages_out(name: str) -> None:
    assert size(draw(1, T, C), name) < 0.35


def test_means_are_taken_within_each_sample() -> None:
    e = torch.ones(T, C, dtype=torch.float64)
    e[T // 2 :] = -1.0
    assert size(e, "channel_mean", rows(1)) == 0.0
    assert size(e, "channel_mean", rows(2)) == 1.0


def test_slope_is_taken_against_values_centred_within_each_sample() -> None:
    given = rows(2)
    step = torch.where(torch.arange(T)[:, None] < T // 2, 10.0, -10.0).double()
    shifted = Rows(given.values + step, given.group, 2, N)
    e = draw(1, T, C)
    torch.testing.assert_close(project(e, shifted)["channel_slope"], project(e, given)["channel_slope"])


@pytest.mark.parametrize("heads", [0, 7])
def test_without_heads_there_is_no_mean_per_head(heads: int) -> None:
    assert "head_mean" not in project(draw(1, T, C), rows(heads=heads))


def test_constant_channels_have_no_slope() -> None:
    given = Rows(torch.ones(T, C, dtype=torch.float64), torch.zeros(T, dtype=torch.long), 1)
    assert size(draw(1, T, C), "channel_slope", given) == 0.0


def test_a_name_is_taken_once() -> None:
    def identity(e: Tensor, rows: Rows) -> Tensor:
        return e

    with pytest.raises(UsageError, match="'identity' is registered twice"):
        projection(identity)


# --- coherence --------------------------------------------------------------------------------------------------------


def test_coherence_of_incoherent_noise_is_one() -> None:
    found = [coherence(draw(seed, T, C), rows()) for seed in range(200)]
    assert sum(found) / len(found) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("groups", [1, 4])
def test_coherence_of_one_vector_on_every_token_is_root_tokens(groups: int) -> None:
    e = draw(1, 1, C).expand(T, C)
    assert coherence(e, rows(groups)) == pytest.approx(math.sqrt(T / groups))


@pytest.mark.parametrize("scale", [1e-120, 1e-9, 1e9])
def test_coherence_knows_no_scale(scale: float) -> None:
    assert coherence(scale * draw(1, T, C), rows()) == pytest.approx(coherence(draw(1, T, C), rows()))


def test_coherence_of_nothing_is_one() -> None:
    assert coherence(torch.zeros(T, C, dtype=torch.float64), rows()) == 1.0
    assert coherence(draw(1, 1, C), Rows(draw(1, 1, C), torch.zeros(1, dtype=torch.long), 1)) == 1.0
