"""T-GIM to QCFS: with Omega = 1/T, lambda = 1, theta = vartheta/L and v(0) = theta/2 a layer's time-average is L*T-level QCFS."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from theorems import check, oracle
from theorems.impl import Loaded
from theorems.oracle import Q
from theorems.strategies import NO_LEAK, POWERS, Case, as_tensor, float_cases, mixed_cases, uniform

STATEMENT = "T-GIM to QCFS"
PAPER = "Omega = 1/T, lambda = 1, theta = vartheta/L, v(0) = theta/2"
layers = mixed_cases(steps=POWERS, leaks=NO_LEAK, mixing="uniform", v0="half")


def assert_quantised(case: Case, call: check.Call, tolerance: float = 0.0) -> None:
    """``mean_t out(t) == QCFS(mean_t x(t))`` with L*T levels; compared as spike counts, ``L*T`` of which make a scale."""
    scale, levels = case.theta * case.levels, case.levels * case.steps
    out = check.transposed(check.rationals(call.result))
    expected, got = [], []
    for neuron, train in enumerate(out):
        x = sum(case.train(neuron), Q(0)) / case.steps
        expected.append([oracle.qcfs(x, levels=levels, scale=scale) * levels / scale])
        got.append([sum(train) / case.theta if not tolerance else Q(round(sum(train) / case.theta))])
    check.same(case, STATEMENT, {"sum of spikes": expected}, {"sum of spikes": got}, call)


@pytest.mark.statement(
    STATEMENT, precondition=PAPER, how="exact cases, T = 1, 2, 4, 8, 4 dtypes: one layer, every real input"
)
@given(layers)
def test_layer(impl: Loaded, case: Case) -> None:
    assert_quantised(case, check.lmht(impl, case))


@pytest.mark.statement(STATEMENT, precondition=PAPER, how="exact cases: against the implementation's own QCFS")
@given(layers)
def test_own_qcfs(impl: Loaded, case: Case) -> None:
    call = check.lmht(impl, case)
    mean = case.tensor().double().mean(0)
    scale = torch.tensor(float(case.theta * case.levels), dtype=torch.float64)
    quantised = check.Call(impl, "qcfs", mean, levels=case.levels * case.steps, scale=scale)
    counts = (quantised.result * case.levels * case.steps / scale).round()
    expected = check.transposed(check.rationals(counts[None]))
    got = check.transposed(check.rationals((call.result.double().sum(0) / float(case.theta))[None]))
    check.same(case, STATEMENT, {"sum of spikes": expected}, {"sum of spikes": got}, call, quantised)


@pytest.mark.statement(STATEMENT, precondition=PAPER, how="float cases, any T, away from ties by the rounding error")
@given(float_cases(uniform=True))
def test_floats(impl: Loaded, case: Case) -> None:
    """1/T rounds for T = 3, 5, 6, 7."""
    row = tuple(Q(float(torch.tensor(1 / case.steps, dtype=case.dtype))) for _ in range(case.steps))
    case = replace(case, omega=(row,) * case.steps, v0=(case.theta / 2,) * len(case.v0))
    call = check.lmht(impl, case)
    check.within_rounding(case, STATEMENT, call)
    bound = check.rounding(case)
    clear = [n for n, t in enumerate(case.traces()) if not check.near_tie(t.m, case.levels, case.theta, bound)]
    for n in clear:
        one = replace(case, v0=(case.v0[n],), currents=tuple((x,) for x in case.train(n)), shape=(1,))
        assert_quantised(one, check.lmht(impl, one), tolerance=1.0)


@pytest.mark.statement(
    STATEMENT, precondition=PAPER, how="exact cases: three layers, affine in between, layer by layer"
)
@given(st.integers(1, 4), st.sampled_from((1, 2, 4)), st.data())
def test_layers(impl: Loaded, L: int, T: int, data: st.DataObject) -> None:
    """Weights, biases and inputs are multiples of 1/4, thresholds powers of two: float64 rounds nothing."""
    quarter = st.integers(-8, 8).map(lambda n: n / 4)
    width = data.draw(st.integers(1, 3), label="width")
    x = torch.tensor(
        data.draw(st.lists(st.lists(quarter, min_size=width, max_size=width), min_size=T, max_size=T), label="x")
    )
    x = x.double()
    mean, trace = x.mean(0), []
    for layer in range(3):
        flat = data.draw(st.lists(quarter, min_size=width * (width + 1), max_size=width * (width + 1)), label="W, b")
        weight, bias = torch.tensor(flat).double().split([width * width, width])
        weight = weight.reshape(width, width)
        theta = data.draw(st.sampled_from((0.5, 1.0, 2.0)), label="theta")
        x, mean = x @ weight.T + bias, mean @ weight.T + bias
        omega, leak = torch.full((T, T), 1 / T).double(), torch.ones(()).double()
        x = impl.lmht(x, levels=L, theta=theta, omega=omega, leak=leak, v0=theta / 2)
        counts = [
            [oracle.qcfs(Q(value), levels=L * T, scale=Q(L * theta)) for value in mean.tolist()],
            [Q(value) for value in x.mean(0).tolist()],
        ]
        trace.append(
            f"layer {layer}: L = {L}, T = {T}, theta = {theta}: LM-HT {check.train(counts[1])}, not {check.train(counts[0])}"
        )
        assert counts[0] == counts[1], "\n".join(trace)
        mean = as_tensor(counts[0], torch.float64)


@pytest.mark.statement(STATEMENT, precondition=PAPER, how="necessity: replayed counterexamples")
@pytest.mark.parametrize("dropped", ["v(0) = theta/2", "lambda = 1", "Omega = 1/T"])
def test_necessity(impl: Loaded, dropped: str, counterexample: Callable[[str], None]) -> None:
    half, mixing = Q(1, 2), uniform(2)
    case = {
        "v(0) = theta/2": Case(1, Q(1), Q(1), (Q(0),), ((Q(1, 4),),) * 2, (1,), omega=mixing),
        "lambda = 1": Case(1, Q(1), half, (half,), ((Q(1, 4),),) * 2, (1,), omega=mixing),
        "Omega = 1/T": Case(1, Q(1), Q(1), (half,), ((Q(1),), (Q(-1),)), (1,), omega=((Q(1), Q(0)), (Q(0), Q(1)))),
    }[dropped]
    call = check.lmht(impl, case)
    got = check.transposed(check.rationals(call.result))
    check.same(case, "counterexample", {"out": [case.trace(0).s]}, {"out": got}, call)
    x = sum(case.train(0), Q(0)) / 2
    quantised = oracle.qcfs(x, levels=2, scale=Q(1))
    assert sum(got[0]) / 2 != quantised
    counterexample(
        f"{dropped} dropped: L = 1, T = 2, theta = 1, lambda = {case.leak}, v(0) = {case.v0[0]}, "
        f"x = ({', '.join(map(str, case.train(0)))}): time-average {sum(got[0]) / 2}, QCFS {quantised}"
    )
