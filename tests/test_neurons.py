"""Modules: layouts, checkpoints, starting values, and one clear error for each kind of bad input."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap

import lmht
from lmht import functional
from lmht.kernels import use_backend
from lmht.neurons import Neuron
from lmht.surrogate import fire

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


def test_one_step() -> None:
    for tgim in (lmht.SigmoidTGIM(1), lmht.FreeTGIM(1, "uniform"), lmht.FreeTGIM(1, "identity")):
        assert lmht.LMHT(2, 1, tgim=tgim)(torch.tensor([0.5, 1.0, 2.5])).tolist() == [0, 1, 2]


def test_the_quotient_is_rounded_before_it_is_floored() -> None:
    """1 / 0.1 is 10 in floating point, and 10 spikes are fired; the multiple of the float 0.1 that 1 reaches is the ninth."""
    assert 1.0 // 0.1 == 9
    assert fire(torch.ones(1, dtype=torch.float64), theta=0.1, levels=16).tolist() == [10]


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


def test_what_is_left_out_is_no_leak_no_charge_and_the_chain_kept() -> None:
    x = torch.tensor([[0.75], [0.5], [1.25]], dtype=torch.float64, requires_grad=True)
    left_out, given = {"theta": 1.0}, {"theta": 1.0, "leak": 1.0, "v0": 0.0, "temporal_gradient": True}
    for neuron, levels in ((functional.integrate_and_fire, {}), (functional.mht, {"levels": 2})):
        pairs = [neuron(x, **levels, **arguments) for arguments in (left_out, given)]
        torch.testing.assert_close(*pairs, rtol=0, atol=0)
        gradients = [torch.autograd.grad(spikes.sum() + v.sum(), x) for spikes, v in pairs]
        torch.testing.assert_close(*gradients, rtol=0, atol=0)
    arguments = {"levels": 2, "theta": 1.0, "omega": torch.eye(3).double(), "leak": 1.0}
    assert torch.equal(functional.lmht(x, **arguments), functional.lmht(x, **arguments, v0=0.0))
    assert lmht.FreeTGIM(2)()[1] == 1


@pytest.mark.parametrize(
    ("current", "upstream", "kept", "detached"),
    [
        ((0.25, 1.0), (1.0, 1.0), [1.0, 1.0], [0.0, 1.0]),  # m = 1/4, 5/4: through v(1) alone
        ((0.75, 0.5), (0.0, 1.0), [0.0, 1.0], [0.0, 1.0]),  # m = 3/4, 5/4: v(1) and its reset cancel
    ],
)
def test_the_chain_through_time(current, upstream, kept: list[float], detached: list[float]) -> None:
    for chain, expected in ((True, kept), (False, detached)):
        x = torch.tensor(current, dtype=torch.float64, requires_grad=True)
        spikes, _ = functional.mht(x, levels=1, theta=1.0, temporal_gradient=chain)
        spikes.backward(torch.tensor(upstream, dtype=torch.float64))
        assert x.grad is not None
        assert x.grad.tolist() == expected


def test_a_spike_counts_one_and_what_it_passes_on_theta() -> None:
    """Eq. 8 is about s * theta; the slope of s itself is 1 / theta."""
    for theta in (0.25, 2.0):
        x = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
        spikes, potentials = functional.mht(x, levels=2, theta=theta, leak=torch.tensor(0.5))
        for part, slope in ((spikes, 1 / theta), (potentials, 0), (_lmht(x, theta=theta, omega=torch.eye(1)), 1)):
            assert torch.autograd.grad(part.sum(), x, retain_graph=True)[0].tolist() == [slope]


def test_a_leak_a_step() -> None:
    """v(1) = 1/2 is kept whole, v(2) = 3/4 half: m(3) = 3/8 + 3/4 fires; with the first step's leak it would be 3/2."""
    x = torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
    leak = torch.tensor([[1.0], [1.0], [0.5]], dtype=torch.float64, requires_grad=True)
    out = functional.lmht(x, levels=1, theta=1.0, omega=torch.eye(3).double(), leak=leak)
    out.sum().backward()
    assert out.tolist() == [0, 0, 1]
    assert leak.grad is not None
    assert leak.grad.flatten().tolist() == [0, 0.5, 0.75]


@pytest.mark.parametrize("call", [lambda x: functional.qcfs(x, levels=2, scale=1.0), lambda x: _lmht(x)])
def test_a_second_derivative_is_refused(call) -> None:
    x = torch.full((2, 3), 0.75, requires_grad=True)
    (gradient,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


SMOOTH = [*NEURONS, lmht.MHT(2, 3, temporal_gradient=False), lmht.QCFS(4)]


@pytest.mark.parametrize("module", SMOOTH, ids=repr)
@pytest.mark.filterwarnings("error:neurons on")
@pytest.mark.parametrize("width", [5, 8192])  # of 8192 and without a transform, the fused operators
def test_torch_func_differentiates_as_autograd_does(module: nn.Module, width: int) -> None:
    module = copy.deepcopy(module).double()
    x, upstream, tangent = torch.randn(3, 6, width, generator=torch.Generator().manual_seed(0)).double()
    names, values = zip(*module.named_parameters(), strict=True) if [*module.parameters()] else ((), ())
    tangents = (tangent, *(torch.full_like(value, 0.5) for value in values))

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, values, strict=True)), (x,))

    def loss(x: Tensor, upstream: Tensor, *values: Tensor) -> Tensor:
        return (run(x, *values) * upstream).sum()

    x.requires_grad_()
    expected = torch.autograd.grad((module(x) * upstream).sum(), (x, *values))
    x = x.detach()
    everything = (0, *range(2, 2 + len(values)))
    for got, wanted in zip(grad(loss, everything)(x, upstream, *values), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
    out, forward = jvp(run, (x, *values), tangents)
    assert torch.equal(out, module(x))
    with forward_ad.dual_level():
        alone = forward_ad.unpack_dual(module(forward_ad.make_dual(x, tangent))).tangent
    assert torch.equal(alone, jvp(module, (x,), (tangent,))[1])
    reverse = sum((g * t).sum() for g, t in zip(expected, tangents, strict=True))
    torch.testing.assert_close((forward * upstream).sum(), reverse, rtol=1e-12, atol=1e-12)
    apart = vmap(grad(loss), (-1, -1, *(None for _ in values)), -1)(x, upstream, *values)  # a gradient a unit
    torch.testing.assert_close(apart, expected[0], rtol=1e-12, atol=0)
    assert torch.equal(vmap(run, (-1, *(None for _ in values)), -1)(x, *values), out)


@pytest.mark.parametrize("module", SMOOTH, ids=repr)
def test_torch_func_is_refused_what_autograd_is(module: nn.Module) -> None:
    x = torch.full((6, 2), 0.75)
    for second in (grad(lambda x: grad(lambda x: module(x).square().sum())(x).sum()), hessian(module)):
        with pytest.raises(RuntimeError, match="once_differentiable"):
            second(x)
    with use_backend("compiled"), pytest.raises(ValueError, match=r"no rules for torch\.func's transforms and"):
        jvp(module, (x,), (x,))


def test_infinities_of_both_signs_are_no_nan() -> None:
    x = torch.tensor([[float("inf")], [-float("inf")]])
    assert functional.qcfs(x, levels=2, scale=1.0).flatten().tolist() == [1, 0]


def _lmht(x: Tensor, **changes) -> Tensor:
    arguments = {"levels": 2, "theta": 1.0, "omega": torch.eye(2), "leak": 1.0} | changes
    return functional.lmht(x, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lmht.LMHT(0, 2), "levels (L) must be an integer >= 1, got 0"),
        (lambda: lmht.QCFS(0), "levels (L) must be an integer >= 1, got 0"),
        (lambda: lmht.MHT(1.5, 2), "levels (L) must be an integer >= 1, got 1.5"),
        (lambda: lmht.MHT(True, 2), "levels (L) must be an integer >= 1, got True"),
        (lambda: lmht.IF(0), "steps (T) must be an integer >= 1, got 0"),
        (lambda: lmht.IF(True), "steps (T) must be an integer >= 1, got True"),
        (lambda: lmht.IF(1.5), "steps (T) must be an integer >= 1, got 1.5"),
        (lambda: lmht.SigmoidTGIM(0), "steps (T) must be an integer >= 1, got 0"),
        (lambda: lmht.IF(2, theta=0.0), "theta must be finite and > 0, got 0.0"),
        (lambda: lmht.IF(2, theta=-1.0), "theta must be finite and > 0, got -1.0"),
        (lambda: lmht.IF(2, theta=float("nan")), "theta must be finite and > 0, got nan"),
        (lambda: lmht.IF(2, theta=float("inf")), "theta must be finite and > 0, got inf"),
        (lambda: lmht.QCFS(2, scale=0.0), "scale must be > 0, got 0.0"),
        *(
            (
                lambda scale=scale: functional.qcfs(torch.ones(2), levels=2, scale=scale),
                f"scale must be finite and > 0, got {scale}",
            )
            for scale in (-1.0, 0.0, float("inf"), float("nan"))
        ),
        (
            lambda: functional.qcfs(torch.ones(2), levels=2, scale=torch.ones(2)),
            "scale must be one number, got a tensor of shape (2,)",
        ),
        (
            lambda: functional.qcfs(torch.ones(2), levels=2, scale=torch.ones(0)),
            "scale must be one number, got a tensor of shape (0,)",
        ),
        (lambda: lmht.LMHT(2, 2, tgim=lmht.SigmoidTGIM(3)), "the T-GIM is for 3 steps, the neuron has steps = 2"),
        (lambda: lmht.FreeTGIM(2, "zero"), "start must be 'uniform' or 'identity', got 'zero'"),
        (lambda: lmht.IF(2)(torch.ones(3, 4)), "folded input must be [T*N, ...] with T = 2, got shape (3, 4)"),
        (
            lambda: lmht.IF(2)(torch.ones(4, 4), folded=False),
            "unfolded input must be [T, N, ...] with T = 2, got shape (4, 4)",
        ),
        (lambda: _lmht(torch.ones(2, 3), omega=torch.eye(3)), "omega must be [T, T] with T = 2 steps"),
        (lambda: _lmht(torch.ones(2, 3), omega=torch.eye(1)), "omega must be [T, T] with T = 2 steps"),
        (lambda: _lmht(torch.ones(2, 3), leak=torch.ones(3)), "a number or one value a step, [T, 1] with T = 2"),
        (lambda: _lmht(torch.ones(2, 2), leak=torch.ones(2)), "there is none a channel"),
        (
            lambda: functional.mht(torch.ones(2, 2), levels=2, theta=1.0, leak=torch.ones(2)),
            "leak must be a number, got",
        ),
        (
            lambda: functional.mht(torch.ones(2, 2), levels=2, theta=1.0, leak=torch.ones(2, 1)),
            "leak must be a number, got",
        ),
        (
            lambda: _lmht(torch.ones(2, 3), v0=torch.ones(2)),
            "v0 must be a number or have the shape of one step, (3,), got (2,)",
        ),
        (lambda: _lmht(torch.tensor([[1.0], [float("nan")]])), "input holds 1 NaN of 2 values"),
        (lambda: lmht.QCFS(2)(torch.tensor([float("nan")])), "input holds 1 NaN of 1 values"),
        (lambda: _lmht(torch.ones(2, 3, dtype=torch.int64)), "input must be a floating-point tensor, got torch.int64"),
        (lambda: _lmht(torch.ones(2, 3), omega=torch.eye(2, device="meta")), "omega is on meta, the input on cpu"),
        (lambda: _lmht(torch.ones(0, 3)), "input must be [T, ...] with T >= 1, got shape (0, 3)"),
        (lambda: _lmht(torch.ones(())), "input must be [T, ...] with T >= 1, got shape ()"),
    ],
)
def test_bad_input_gives_one_clear_error(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
