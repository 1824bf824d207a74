"""Whitening: gradients as strong in every direction, however unequal they were."""

from __future__ import annotations

import torch

from diffprivacy.msi.whitening import Whitening

STRENGTHS = torch.tensor([1.0, 0.5, 0.2, 0.1])


def gradients(rows: int, seed: int = 0) -> torch.Tensor:
    """(rows,4): of unequal strengths along the axes of a turned frame."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(9)))[0]
    return 1e-4 * torch.randn(rows, 4, generator=generator) * STRENGTHS @ turn


def moment(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


def test_directions_become_equally_strong():
    whitening = Whitening([4])
    for step in range(60):
        whitening(gradients(200, step))
    raw, white = gradients(5000, 99), whitening(gradients(5000, 99))
    assert torch.linalg.cond(moment(raw)) > 50
    assert torch.linalg.cond(moment(white)) < 1.2
    assert torch.allclose(moment(white), torch.eye(4), atol=0.1)


def test_a_gradient_still_points_downhill():
    whitening = Whitening([4])
    for step in range(5):
        x = gradients(3, step)
        assert ((whitening(x) * x).sum(dim=1) > 0).all()


def test_text_encoders_are_whitened_on_their_own():
    x = gradients(100)
    both = Whitening([4, 4])(torch.cat([x, 1000 * x.flip(1)], dim=1))
    assert torch.allclose(both[:, :4], Whitening([4])(x), rtol=1e-3, atol=1e-4)
    assert torch.allclose(both[:, 4:], Whitening([4])(x.flip(1)), rtol=1e-3, atol=1e-3)


def test_no_gradient_stays_none():
    assert torch.equal(Whitening([4])(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_it_goes_on_where_it_was():
    first, second = Whitening([4]), Whitening([4])
    for step in range(12):
        first(gradients(10, step))
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    for step in range(12, 20):
        assert torch.equal(first(gradients(10, step)), second(gradients(10, step)))
