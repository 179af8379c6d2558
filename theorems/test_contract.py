"""The neurons are the equations, and keep the contract: dtype, device, shapes, range, no neighbours, no memory."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from theorems import check, oracle
from theorems.conventions import SINGLE
from theorems.impl import Loaded
from theorems.strategies import SHAPES, Case, cases, float_cases, mixed_cases, quantised_cases

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EXACT = "exact cases, 4 dtypes"
FLOAT = "float cases, away from ties by the rounding error"


@pytest.mark.statement("Eqs. 1-2 (IF, LIF)", precondition="none", how=EXACT)
@given(cases(levels=(1,), v0="any"))
def test_integrate_and_fire(impl: Loaded, case: Case) -> None:
    check.same_as_oracle(case, "Eqs. 1-2", check.integrate_and_fire(impl, case))


@pytest.mark.statement("Eqs. 5-6 (M-HT)", precondition="none", how=EXACT)
@given(cases(v0="any"))
def test_mht(impl: Loaded, case: Case) -> None:
    check.same_as_oracle(case, "Eqs. 5-6", check.mht(impl, case))


@pytest.mark.statement("Eqs. 5-6 (M-HT)", precondition="none", how=FLOAT)
@given(float_cases())
def test_mht_floats(impl: Loaded, case: Case) -> None:
    check.within_rounding(case, "Eqs. 5-6", check.mht(impl, case))


@pytest.mark.statement("Eq. 7 (LM-HT)", precondition="none", how=FLOAT)
@given(float_cases(mixed=True))
def test_lmht_floats(impl: Loaded, case: Case) -> None:
    check.within_rounding(case, "Eq. 7", check.lmht(impl, case))


@pytest.mark.statement("Eq. 7 (LM-HT)", precondition="none", how=EXACT)
@given(mixed_cases())
def test_lmht(impl: Loaded, case: Case) -> None:
    call = check.lmht(impl, case)
    out = check.transposed(check.rationals(call.result))
    check.same(
        case,
        "Eq. 7",
        {"out": [[s * case.theta for s in trace.s] for trace in case.traces(impl.rules("lmht"))]},
        {"out": out},
        call,
    )


@pytest.mark.statement("Eq. 4 (QCFS)", precondition="none", how=EXACT)
@given(quantised_cases())
def test_qcfs(impl: Loaded, case: Case) -> None:
    scale = torch.tensor(float(case.theta), dtype=case.dtype)
    call = check.Call(impl, "qcfs", case.tensor(), levels=case.levels, scale=scale)
    out = check.transposed(check.rationals(call.result))
    expected = [[oracle.qcfs(x, levels=case.levels, scale=case.theta) for x in case.train(0)]]
    check.same(case, "Eq. 4", {"out": expected}, {"out": out}, call)


def everything(impl: Loaded, x: torch.Tensor, v0: float | torch.Tensor) -> dict[str, torch.Tensor]:
    """Every tensor that the provided methods return for x; L = 3, theta = 3/4."""
    T = len(x)
    omega = torch.tensor(
        [[(t + 2 * j) % 5 / 4 - 0.5 for j in range(T)] for t in range(T)], dtype=x.dtype, device=x.device
    )
    found: dict[str, torch.Tensor] = {}
    if impl.provides("mht"):
        found["mht spikes"], found["mht v"] = impl.mht(x, levels=3, theta=0.75, leak=0.5, v0=v0)
    if impl.provides("integrate_and_fire"):
        found["spikes"], found["v"] = impl.integrate_and_fire(x, theta=0.75, leak=0.5, v0=v0)
    if impl.provides("lmht"):
        leak = torch.tensor(0.5, dtype=x.dtype, device=x.device)
        found["lmht out"] = impl.lmht(x, levels=3, theta=0.75, omega=omega, leak=leak, v0=v0)
    if impl.provides("qcfs"):
        found["qcfs out"] = impl.qcfs(x, levels=3, scale=torch.tensor(2.0, dtype=x.dtype, device=x.device))
    return found


def dyadic(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0) -> torch.Tensor:
    """Multiples of 1/8 in [-3, 3]."""
    integers = torch.randint(-24, 25, shape, generator=torch.Generator().manual_seed(seed))
    return (integers / 8).to(device=device, dtype=dtype)


def contract(how: str) -> pytest.MarkDecorator:
    return pytest.mark.statement("Contract", precondition="none", how=how)


@contract("every method can be called as the contract says, with its defaults too, and again")
def test_calls(loaded: Loaded) -> None:
    """The first call that can't be made; nothing else is asked then."""
    if loaded.fault:
        pytest.fail(loaded.fault, pytrace=False)


@contract("dtype, device and shape follow the input")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (3,), (4, 1), (2, 5), (3, 2, 2), (2, 0), (5, 1, 3, 1)], ids=str)
def test_follows_the_input(impl: Loaded, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x = dyadic(*shape, dtype=dtype, device=device)
    dtypes = {dtype, torch.float32} if dtype.itemsize == 2 and impl.has(SINGLE) else {dtype}
    for key, value in everything(impl, x, v0=0.25).items():
        got = f"{key} for input {shape} in {dtype} on {device}: shape {tuple(value.shape)} in {value.dtype} on {value.device}"
        assert (value.device, value.shape) == (x.device, x.shape), got
        assert value.dtype in dtypes, got


@contract("spikes are integers in 0..L, whatever the floats")
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8),
    st.integers(1, 8),
    st.floats(1e-3, 1e3),
    st.sampled_from(DTYPES[:2]),
)
def test_spikes_are_counts(impl: Loaded, train: list[float], levels: int, theta: float, dtype: torch.dtype) -> None:
    call = check.Call(impl, "mht", torch.tensor(train, dtype=dtype), levels=levels, theta=theta)
    spikes = call.result[0]
    assert set(spikes.tolist()) <= set(range(levels + 1)), f"spikes {spikes.tolist()} at L = {levels}\n{call.source}"


@contract("a sample does not depend on its neighbours, nor on their number")
@pytest.mark.parametrize("steps", range(1, 9))
def test_batch_size_invariance(impl: Loaded, steps: int) -> None:
    x, v0 = dyadic(steps, 37, 3, seed=steps), dyadic(37, 3, seed=99)
    whole = everything(impl, x, v0)
    for start, stop in ((0, 1), (36, 37), (1, 4), (5, 36)):
        for key, part in everything(impl, x[:, start:stop].contiguous(), v0[start:stop]).items():
            assert check.identical(part, whole[key][:, start:stop]), (
                f"{key} of samples {start}..{stop - 1} alone, T = {steps}"
            )


@contract("two calls agree, whatever was called between them; the input stays as it was")
def test_no_state(impl: Loaded) -> None:
    x, v0 = dyadic(4, 5), dyadic(5, seed=1)
    before, v0_before = x.clone(), v0.clone()
    first = everything(impl, x, v0)
    first = {key: value.clone() for key, value in first.items()}
    for other, start in (
        (dyadic(7, 2, seed=3), 0.5),
        (dyadic(4, 5, seed=2) + 3, v0),
    ):  # of another shape, and of the same
        everything(impl, other, start)
        for key, value in everything(impl, x, v0).items():
            assert check.identical(value, first[key]), f"{key} changed from one call to the next"
    assert torch.equal(x, before), "the input was changed in place"
    assert torch.equal(v0, v0_before), "v0 was changed in place"


@contract("v0: a number equals a tensor that is filled with it; strided and expanded inputs are read right")
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_views(impl: Loaded, steps: int) -> None:
    x = dyadic(6, steps, seed=steps).T  # time is the inner axis in memory
    want = everything(impl, x.contiguous(), torch.full((6,), 0.375, dtype=x.dtype))
    for key, value in everything(impl, x, 0.375).items():
        assert check.identical(value, want[key]), f"{key} of a strided input, v0 a number"
    same = x[:1].expand(steps, 6)
    want = everything(impl, same.contiguous(), 0.375)
    for key, value in everything(impl, same, 0.375).items():
        assert check.identical(value, want[key]), f"{key} of an expanded input"


@contract("leak is 1 and v(0) is 0 where they are left out")
def test_defaults(impl: Loaded) -> None:
    x = dyadic(4, 5)
    arguments: dict[str, dict[str, Any]] = {"integrate_and_fire": {}, "mht": {"levels": 2}}
    for method, levels in arguments.items():
        if impl.provides(method):
            left_out = getattr(impl, method)(x, theta=0.75, **levels)
            given = getattr(impl, method)(x, theta=0.75, leak=1.0, v0=0.0, **levels)
            assert all(map(check.identical, left_out, given)), f"{method} without leak and v0"
    if impl.provides("lmht"):
        mixed = {
            "levels": 2,
            "theta": 0.75,
            "omega": torch.eye(4, dtype=x.dtype),
            "leak": torch.ones((), dtype=x.dtype),
        }
        assert check.identical(impl.lmht(x, **mixed), impl.lmht(x, **mixed, v0=0.0)), "lmht without v0"


@contract("integrate_and_fire is mht at L = 1")
@given(cases(levels=(1,), v0="any"))
def test_one_level(impl: Loaded, case: Case) -> None:
    one, many = check.integrate_and_fire(impl, case), check.mht(impl, case)
    for a, b in zip(one.result, many.result, strict=True):
        expected, got = (check.transposed(check.rationals(values)) for values in (a, b))
        check.same(case, "IF = M-HT at L = 1", {"train": expected}, {"train": got}, one, many)


@contract("per-neuron v0 in every shape of one step: what each neuron does alone, its v0 a number")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_v0_of_each_neuron(impl: Loaded, shape: tuple[int, ...]) -> None:
    size = torch.Size(shape).numel()
    v0 = (7 - 3 * torch.arange(size, dtype=torch.float64)) / 8
    x = torch.full((3, size), 0.75, dtype=torch.float64)
    together = everything(impl, x.reshape(3, *shape), v0.reshape(shape))
    for n in range(size):
        for key, alone in everything(impl, x[:, n : n + 1], float(v0[n])).items():
            assert check.identical(alone[:, 0], together[key].reshape(3, size)[:, n]), (
                f"{key} with v0 of shape {shape}, neuron {n}"
            )
