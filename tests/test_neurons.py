"""Modules: layouts, checkpoints, starting values, and one clear error for each kind of bad input."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import lmht
from lmht import functional
from lmht.neurons import Neuron

NEURONS = [
    lmht.IF(3),
    lmht.LIF(3),
    lmht.MHT(2, 3, theta=0.5),
    lmht.LMHT(2, 3, theta=0.5, v0=0.25),
    lmht.LMHT(2, 3, tgim=lmht.FreeTGIM(3, "identity", leak=0.5)),
]


@pytest.mark.parametrize("neuron", NEURONS, ids=repr)
@pytest.mark.parametrize("features", [(), (5,), (2, 4, 4)], ids=str)
def test_folded_and_unfolded_layouts_agree(neuron: Neuron, features: tuple[int, ...]) -> None:
    x = torch.randn(3, 4, *features, generator=torch.Generator().manual_seed(0))
    assert torch.equal(neuron(x.flatten(0, 1)), neuron(x, folded=False).flatten(0, 1))


@pytest.mark.parametrize("neuron", NEURONS, ids=repr)
def test_no_state_between_forwards(neuron: Neuron) -> None:
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(1))
    first = neuron(x)
    neuron(torch.full((6, 7), 10.0))
    assert torch.equal(neuron(x), first)


@pytest.mark.parametrize("neuron", NEURONS, ids=repr)
def test_an_empty_batch_passes(neuron: Neuron) -> None:
    assert neuron(torch.zeros(0, 7)).shape == (0, 7)


def test_lmht_starts_at_the_papers_values_exactly() -> None:
    omega, leak = lmht.LMHT(2, 5).tgim()
    assert torch.equal(omega, torch.full((5, 5), 1 / 5))
    assert leak.item() == 1


def test_the_sigmoid_form_cannot_reach_the_identity_and_the_free_form_holds_it() -> None:
    bounded = lmht.SigmoidTGIM(4)
    nn.init.constant_(bounded.a, 20.0)
    assert bounded()[0].max() <= 2 / 4
    assert torch.equal(lmht.FreeTGIM(4, "identity")()[0], torch.eye(4))
    assert torch.equal(lmht.FreeTGIM(4, "uniform")()[0], torch.full((4, 4), 0.25))


@pytest.mark.parametrize("make", [lambda: lmht.SigmoidTGIM(2), lambda: lmht.FreeTGIM(2, "identity")])
def test_tgim_and_leak_are_trained(make) -> None:
    neuron = lmht.LMHT(2, 2, tgim=make())
    neuron(torch.rand(8, 3) * 2).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in neuron.parameters())


@pytest.mark.parametrize("neuron", NEURONS, ids=repr)
@pytest.mark.parametrize("features", [(), (5,)], ids=str)
def test_the_layout_can_be_set_at_construction(neuron: Neuron, features: tuple[int, ...]) -> None:
    unfolded = copy.deepcopy(neuron)
    unfolded.folded = False
    x = torch.randn(3, 4, *features, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nn.Sequential(unfolded)(x), neuron(x, folded=False))
    assert "folded=False" in repr(unfolded)


def test_every_neuron_takes_its_layout_when_made() -> None:
    made = (
        lmht.IF(3, folded=False),
        lmht.LIF(3, folded=False),
        lmht.MHT(2, 3, folded=False),
        lmht.LMHT(2, 3, folded=False),
    )
    assert not any(neuron.folded for neuron in made)
    assert lmht.IF(3).folded


def test_what_is_not_learned_travels_with_the_checkpoint() -> None:
    saved = lmht.LMHT(2, 2, theta=0.3, v0=0.15).state_dict()
    neuron = lmht.LMHT(2, 2)
    neuron.load_state_dict(saved)
    assert (neuron.theta, neuron.v0) == (0.3, 0.15)
    for make in (lambda: lmht.LIF(3), lambda: lmht.MHT(1, 3)):
        mht = make()
        mht.load_state_dict(lmht.LIF(3, theta=0.3, leak=0.7, v0=0.1, temporal_gradient=False).state_dict())
        assert (mht.theta, mht.v0, mht.leak, mht.temporal_gradient) == (0.3, 0.1, 0.7, False)


def test_checkpoints_of_the_first_runs_are_read() -> None:
    neuron = lmht.LIF(3, leak=0.7, temporal_gradient=False)
    neuron.load_state_dict({"_extra_state": {"levels": 1, "steps": 3, "theta": 0.3, "v0": 0.1}})
    assert (neuron.theta, neuron.v0, neuron.leak, neuron.temporal_gradient) == (0.3, 0.1, 0.7, False)
    with pytest.raises(ValueError, match="checkpoint has L = 1, T = 2"):
        neuron.load_state_dict({"_extra_state": {"levels": 1, "steps": 2, "theta": 0.3, "v0": 0.1}})


def test_a_state_dict_holds_tensors_only() -> None:
    """What walks it (averaging, counting parameters, export) may do arithmetic on every entry."""
    for neuron in NEURONS:
        saved = neuron.state_dict()
        assert all(isinstance(value, Tensor) for value in saved.values())
        average = {name: 0.9 * value + 0.1 * value for name, value in saved.items()}
        copy.deepcopy(neuron).load_state_dict(average)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lmht.LMHT(4, 2), r"checkpoint has L = 2, T = 2, the neuron L = 4, T = 2; .* strict=False"),
        (lambda: lmht.LMHT(2, 3), r"checkpoint has L = 2, T = 2, the neuron L = 2, T = 3; .* strict=False"),
        (lambda: lmht.MHT(2, 2), "entry for a MHT must be 6 numbers"),
    ],
)
def test_another_neurons_checkpoint_is_refused_and_changes_nothing(make, message: str) -> None:
    saved = lmht.LMHT(2, 2, theta=0.3, v0=0.15).state_dict()
    neuron = make()
    before = copy.deepcopy(neuron.state_dict())
    with pytest.raises(ValueError, match=message):
        neuron.load_state_dict(saved)
    torch.testing.assert_close(neuron.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match="must be 4 numbers"):
        lmht.LMHT(2, 2).load_state_dict({name: value.to("meta") for name, value in saved.items()})


@pytest.mark.parametrize("neuron", [*NEURONS, lmht.QCFS(4)], ids=repr)
def test_meta_and_fake_tensors_pass_through(neuron: nn.Module) -> None:
    x = torch.zeros(6, 7, requires_grad=True)
    meta = copy.deepcopy(neuron).to("meta")(x.to("meta"))
    assert (meta.is_meta, meta.shape) == (True, x.shape)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert neuron(mode.from_tensor(x)).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_follows_the_input(dtype: torch.dtype) -> None:
    x = torch.ones(4, 3, dtype=dtype)
    assert all(neuron(x).dtype == dtype for neuron in (lmht.IF(2), lmht.LMHT(2, 2), lmht.QCFS(4)))


def _lmht(x: Tensor, **changes) -> Tensor:
    arguments = {"levels": 2, "theta": 1.0, "omega": torch.eye(2), "leak": 1.0} | changes
    return functional.lmht(x, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lmht.LMHT(0, 2), "levels (L) must be an integer >= 1, got 0"),
        (lambda: lmht.QCFS(0), "levels (L) must be an integer >= 1, got 0"),
        (lambda: lmht.MHT(1.5, 2), "levels (L) must be an integer >= 1, got 1.5"),
        (lambda: lmht.IF(0), "steps (T) must be an integer >= 1, got 0"),
        (lambda: lmht.SigmoidTGIM(0), "steps (T) must be an integer >= 1, got 0"),
        (lambda: lmht.IF(2, theta=0.0), "theta must be finite and > 0, got 0.0"),
        (lambda: lmht.IF(2, theta=-1.0), "theta must be finite and > 0, got -1.0"),
        (lambda: lmht.IF(2, theta=float("nan")), "theta must be finite and > 0, got nan"),
        (lambda: lmht.QCFS(2, scale=0.0), "scale must be > 0, got 0.0"),
        (lambda: functional.qcfs(torch.ones(2), levels=2, scale=-1.0), "scale must be finite and > 0, got -1.0"),
        (lambda: lmht.LMHT(2, 2, tgim=lmht.SigmoidTGIM(3)), "the T-GIM is for 3 steps, the neuron has steps = 2"),
        (lambda: lmht.FreeTGIM(2, "zero"), "start must be 'uniform' or 'identity', got 'zero'"),
        (lambda: lmht.IF(2)(torch.ones(3, 4)), "folded input must be [T*N, ...] with T = 2, got shape (3, 4)"),
        (
            lambda: lmht.IF(2)(torch.ones(4, 4), folded=False),
            "unfolded input must be [T, N, ...] with T = 2, got shape (4, 4)",
        ),
        (lambda: _lmht(torch.ones(2, 3), omega=torch.eye(3)), "omega must be [T, T] with T = 2 steps"),
        (lambda: _lmht(torch.ones(2, 3), leak=torch.ones(3)), "a number or one value a step, [T, 1] with T = 2"),
        (lambda: _lmht(torch.ones(2, 2), leak=torch.ones(2)), "there is none a channel"),
        (
            lambda: functional.mht(torch.ones(2, 2), levels=2, theta=1.0, leak=torch.ones(2)),
            "leak must be a number, got",
        ),
        (
            lambda: _lmht(torch.ones(2, 3), v0=torch.ones(2)),
            "v0 must be a number or have the shape of one step, (3,), got (2,)",
        ),
        (lambda: _lmht(torch.tensor([[1.0], [float("nan")]])), "input holds 1 NaN of 2 values"),
        (lambda: lmht.QCFS(2)(torch.tensor([float("nan")])), "input holds 1 NaN of 1 values"),
        (lambda: _lmht(torch.ones(2, 3, dtype=torch.int64)), "input must be a floating-point tensor, got torch.int64"),
        (lambda: _lmht(torch.ones(())), "input must be [T, ...] with T >= 1, got shape ()"),
    ],
)
def test_bad_input_gives_one_clear_error(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
