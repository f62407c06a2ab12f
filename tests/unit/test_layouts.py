"""One value in two layouts is found to be one; of several layouts that have the shape the right one."""

from __future__ import annotations

import torch

from parity.diagnose.layouts import layouts, nearest_layout

X = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_dims_are_exchanged_split_and_merged() -> None:
    """[B, S, N, D] as [B, N, S, D], as [B, S, N * D], and all of them back."""
    forms = [X, X.transpose(1, 2), X.flatten(2), X.flatten(0, 1), X.transpose(1, 2).flatten(0, 1)]
    for value in forms[:4]:
        for other in forms[:4]:
            alike, laid = nearest_layout(value, other)
            assert alike > 1 - 1e-12
            assert laid is not None
            assert torch.equal(laid, other)


def test_the_plain_reshape_comes_first() -> None:
    assert torch.equal(next(layouts(X, (12, 20))), X.reshape(12, 20))


def test_another_number_of_elements_has_no_layout() -> None:
    assert list(layouts(X, (2, 6, 4))) == []
    assert nearest_layout(X, X[:, :3]) == (-1.0, None)


def test_unrelated_values_are_not_alike() -> None:
    other = torch.randn(X.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert nearest_layout(X, other)[0] < 0.3
