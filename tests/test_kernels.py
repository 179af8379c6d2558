"""The fused operator against the naive reference: values, gradients, layouts, memory, and how a backend is chosen."""

import gc
import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from lmht import functional, kernels
from lmht.kernels import compiled
from lmht.kernels.operator import fire

needs_compiler = pytest.mark.skipif(not compiled.available(), reason="no C++ compiler")
Gradients = tuple[Tensor, list[Tensor]]


def dyadic(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, most: int = 24) -> Tensor:
    """Multiples of 1/8 in [-most/8, most/8]."""
    return (torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)) / 8).to(dtype)


def evaluated(function: Callable[..., Tensor], grad: Tensor, *inputs: Tensor) -> Gradients:
    """Output of ``function(*inputs)`` and the gradients of its product with ``grad``."""
    inputs = tuple(value.detach().requires_grad_() for value in inputs)
    out = function(*inputs)
    return out.detach(), list(torch.autograd.grad(out, inputs, grad))


def away_from_ties(x: Tensor, margin: float = 1e-6, **arguments: object) -> Tensor:
    """``x`` without the neurons whose potential comes within the margin of a threshold or of an end of the window."""
    theta, levels = arguments["theta"], arguments["levels"]
    out = functional.lmht(x, **arguments)
    v, keep = torch.zeros_like(x[0]) + arguments["v0"], torch.ones_like(x[0], dtype=torch.bool)
    for t in range(len(x)):
        m = torch.as_tensor(arguments["leak"]).expand(len(x))[t] * v + torch.einsum("j,j...->...", arguments["omega"][t], x)
        assert isinstance(levels, int)
        keep &= ((m * 2 / theta) - (m * 2 / theta).round()).abs() > margin
        v = m - out[t]
    return x[:, keep]


@pytest.fixture(params=["compiled"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "compiled" and not compiled.available():
        pytest.skip("no C++ compiler")
    with kernels.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("size", [1, 5, 4096, 4097, 10_007])
@pytest.mark.parametrize(("steps", "levels", "leaks"), [(1, 4, ()), (2, 2, ()), (3, 1, (3,))])
def test_dyadic_equal(backend: str, steps: int, levels: int, leaks: tuple[int, ...], size: int) -> None:
    x, g = dyadic(steps, size), dyadic(steps, size, seed=1)
    omega, leak = dyadic(steps, steps, seed=2, most=8), dyadic(*leaks, seed=3, most=8)

    def at(function: Callable[..., Tensor]) -> Gradients:
        return evaluated(
            lambda x, omega, leak: function(x, levels=levels, theta=0.75, omega=omega, leak=leak, v0=0.375), g, x, omega, leak
        )

    out, grads = at(kernels.lmht)
    want, want_grads = at(functional.lmht)
    assert torch.equal(out, want)
    for name, a, b in zip(("x", "omega", "leak"), grads, want_grads, strict=True):
        assert torch.equal(a, b), f"gradient of {name}"
