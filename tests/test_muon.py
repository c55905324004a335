"""Proves Muon: it makes matrices orthogonal, takes the steps of PyTorch's own, which knows no convolutions, and treats
a kernel as the matrix of its outputs by all its inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonal

RATE = 0.1
SHAPES = ((6, 6), (4, 9), (9, 4), (4, 9))  # two of them are made orthogonal together
ROUNDING = 0.02  # of a step: bfloat16 has eight bits, and five iterations add up theirs


def parameters(seed: int, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[nn.Parameter]:
    draws = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=draws)) for shape in shapes]


def descend(optimizer: torch.optim.Optimizer, changed: list[nn.Parameter], steps: int) -> None:
    for step in range(steps):
        gradients = parameters(step + 1, tuple(tuple(each.shape) for each in changed))
        for parameter, gradient in zip(changed, gradients, strict=True):
            parameter.grad = gradient.detach()
        optimizer.step()


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 40), (1, 1, 7)])
def test_singular_values_become_about_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1000
    matrices += 1000 * torch.eye(*shape[1:])  # none of them is nearly singular
    found = orthogonal(matrices)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert ((found * (left @ right)).sum((1, 2)) / found.flatten(1).norm(dim=1) / shape[1] ** 0.5).min() > 0.97


def test_its_steps_are_those_of_pytorch() -> None:
    ours, theirs = parameters(0), parameters(0)
    descend(Muon(ours, lr=RATE), ours, steps=4)
    reference = torch.optim.Muon(theirs, lr=RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    descend(reference, theirs, steps=4)
    for before, a, b in zip(parameters(0), ours, theirs, strict=True):
        step = (b - before).abs().max()
        assert step > RATE * 0.2
        assert (a - b).abs().max() < ROUNDING * step


def test_a_step_is_as_long_as_one_of_adam() -> None:
    """Its root mean square is a fifth of the rate, whatever the gradient's scale."""
    for scale in (1e-4, 1e4):
        (changed,) = parameters(0, ((32, 64),))
        before = changed.detach().clone()
        changed.grad = scale * parameters(1, ((32, 64),))[0].detach()
        Muon([changed], lr=RATE).step()
        assert float((changed.detach() - before).square().mean().sqrt()) == pytest.approx(0.2 * RATE, rel=0.2)


def test_a_kernel_is_a_matrix() -> None:
    (matrix,), (kernel,) = parameters(0, ((4, 18),)), parameters(0, ((4, 18),))
    kernel = nn.Parameter(kernel.detach().reshape(4, 2, 3, 3).to(memory_format=torch.channels_last))
    gradient = parameters(1, ((4, 18),))[0].detach()
    matrix.grad, kernel.grad = gradient, gradient.reshape(4, 2, 3, 3)
    Muon([matrix], lr=RATE).step()
    Muon([kernel], lr=RATE).step()
    torch.testing.assert_close(kernel.reshape(4, 18), matrix, rtol=0, atol=1e-6)


def test_what_has_no_gradient_stays() -> None:
    changed, kept = parameters(0, ((4, 4), (4, 4)))
    before = kept.detach().clone()
    changed.grad = torch.ones(4, 4)
    Muon([changed, kept], lr=RATE).step()
    assert torch.equal(kept, before)


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a parameter has shape \(3,\); Muon is for matrices and kernels"):
        Muon(parameters(0, ((2, 2), (3,))), lr=RATE)
