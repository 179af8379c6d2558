"""Our neurons in snnTorch's loops and its neurons in our networks: the same spikes, bit for bit."""

import copy
from fractions import Fraction
from typing import Any

import pytest
import torch

from lmht import IF, LIF, LMHT, MHT
from lmht.energy import count_operations
from lmht.networks import build
from lmht.reparameterize import reparameterize
from tests.dyadic import dyadic_images, make_dyadic

pytest.importorskip("snntorch", reason="snntorch is not installed; run tox -e interop")
import snntorch

from lmht.interop.snntorch import FromSnnTorch, ToSnnTorch

T = 4
# After t steps potentials are t/64 or t/32 off the grid: never at the threshold, where snnTorch does not fire.
OFFSET = Fraction(1, 64)


@pytest.mark.parametrize("neuron", [IF(T), LIF(T, leak=0.5, v0=0.25), MHT(3, T, theta=0.5, v0=0.25, leak=0.75)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_stepped_is_the_run_of_all_steps(neuron: MHT, dtype: torch.dtype) -> None:
    """Spikes and gradient, in a loop of snnTorch's kind."""
    x = (torch.randn(T, 50, generator=torch.Generator().manual_seed(0)) + 0.5).to(dtype).requires_grad_()
    stepped, mem, outs = ToSnnTorch(neuron), None, []
    for current in x:
        spikes, mem = stepped(current, mem)
        outs.append(spikes)
    out, expected = torch.stack(outs), neuron(x, folded=False)
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    (grad,), (expected_grad,) = (torch.autograd.grad(y.square().sum(), x) for y in (out, expected))
    assert torch.equal(grad, expected_grad) if dtype != torch.bfloat16 else grad.isfinite().all()
    assert expected_grad.count_nonzero()


def test_stepped_beside_leaky() -> None:
    """One level is Leaky with beta = 1, bit for bit, in one loop."""
    ours, theirs = ToSnnTorch(IF(T)), snntorch.Leaky(beta=1.0, reset_delay=False)
    mem1, mem2 = None, theirs.reset_mem()
    for current in dyadic_images(T, 100) / 4 + float(OFFSET):
        spikes1, mem1 = ours(current, mem1)
        spikes2, mem2 = theirs(current, mem2)
        assert torch.equal(spikes1, spikes2)
        assert torch.equal(mem1, mem2)


def test_theirs_in_our_networks() -> None:
    """Leaky in our ResNet-20 gives the logits of our IF, again at the next pass and in a copy; its spikes are counted as ours."""
    options: dict[str, Any] = {"classes": 5, "steps": T, "width": 1 / 4}

    def leaky() -> FromSnnTorch:
        return FromSnnTorch(snntorch.Leaky(beta=1.0, init_hidden=True), T)

    ours = make_dyadic(build("ResNet-20", lambda: IF(T), **options), OFFSET)
    mixed = make_dyadic(build("ResNet-20", leaky, **options), OFFSET)
    data = dyadic_images(2, 3, 8, 8)
    with torch.no_grad():
        expected = ours(data)
        assert torch.equal(mixed(data), expected)
    mixed(data).sum().backward()
    assert torch.equal(copy.deepcopy(mixed)(data), expected)
    assert count_operations(mixed, data).spikes == count_operations(ours, data).spikes
    with pytest.raises(ValueError, match=r"FromSnnTorch.*has dynamics of its own"):
        reparameterize(mixed)


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"LMHT can't be stepped: its T-GIM mixes all time-steps"):
        ToSnnTorch(LMHT(2, T))  # type: ignore[arg-type]
    for node in (snntorch.Leaky(0.9), snntorch.Leaky(0.9, init_hidden=True, output=True), torch.nn.ReLU()):
        with pytest.raises(
            ValueError, match=r"must be a snntorch.SpikingNeuron with init_hidden=True and output=False"
        ):
            FromSnnTorch(node, T)
    with pytest.raises(ValueError, match=r"graded_spikes_factor = 0\.5; a spike counts 1"):
        FromSnnTorch(snntorch.Leaky(0.9, init_hidden=True, graded_spikes_factor=0.5), T)
