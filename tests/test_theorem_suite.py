"""The suite tested: it accepts right neurons, rejects every broken one, reaches the hard inputs, and reports."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import gcd
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.neurons.broken import CAUGHT_BY
from theorems import check
from theorems.exact import FORMATS, of_sum
from theorems.report import NEURON, Outcome, StatementReport, failure
from theorems.statements import STATEMENTS
from theorems.strategies import NO_LEAK, POWERS, Case, cases, mixed_cases, quantised_cases

ROOT = Path(__file__).parents[1]
CANNOT_BE_ASKED = {
    "exits": "raises SystemExit: needs a GPU",
    "never_reset": "gives another answer when it is called again: state that is not reset, or randomness",
    "always_raises": "raises NotImplementedError: later",
    "wrong_shape": "returns shape [2] for x of shape [3, 2]",
    "no_levels": "unexpected keyword argument 'levels'",
    "counts": "lmht gives 1, 2 and 3 for as many spikes at theta = 2: multiply by theta, as the contract has it",
    "NeedsAnObject": "is a class, not an object: write mine = NeedsAnObject() and pass tests.neurons.foreign:mine",
}
SIGMOID = ("--impl", "tests.neurons.foreign:sigmoid")
# neuron -> its convention's name, part of its smallest example, and what the suite has to say about some statements
OTHER_CONVENTIONS: dict[str, tuple[str, str, dict[str, str]]] = {
    "hard_reset": (
        "hard reset",
        "I = (3/2): s = (1), v = (0); the paper: s = (1), v = (1/2)",
        dict.fromkeys(("Contract", "Eqs. 1-2 (IF, LIF)", "Eqs. 5-6 (M-HT)", "Eqs. 8-9 (gradients)", "T-GIM to STBP"), "holds")
        | dict.fromkeys(("Conventions", "Lemma 4.1", "Theorem 4.2 (ii)", "Theorem 4.4", "T-GIM to QCFS"), "differs"),
    ),
    "rounds": (
        "rounds to the nearest level",
        "I = (3/4): s = (1), v = (-1/4); the paper: s = (0), v = (3/4)",
        {"Eq. 7 (LM-HT)": "holds", "Eqs. 5-6 (M-HT)": "holds"}
        | dict.fromkeys(("Conventions", "Lemma 4.1", "Lemma A.1", "Theorem 4.4"), "differs"),
    ),
    "leak_up_to_one": (
        "clamps a leak above 1 to 1",
        "lambda = 5/4, v(0) = 1/2, I = (0): s = (0), v = (1/2); the paper: s = (0), v = (5/8)",
        {"Conventions": "differs", "Eqs. 5-6 (M-HT)": "holds", "Eqs. 8-9 (gradients)": "holds", "Theorem A.2": "differs"},
    ),
    "clamped": (
        "no gradient at the clip's bounds",
        "Tq = 4, scale = 4, x = 0: d(out)/dx = 0; the paper: 1",
        {"Conventions": "differs", "Eq. 4 (QCFS)": "in part", "Theorem 4.4": "holds"},
    ),
    "sigmoid": (
        "another surrogate gradient",
        "L = 1, theta = 1, m = 0: d(out)/dm = 0.0706508; the paper: 0",
        {"Conventions": "differs", "Eq. 7 (LM-HT)": "holds", "T-GIM to STBP": "holds", "Eqs. 8-9 (gradients)": "in part"},
    ),
}  # fmt: skip
LIMIT = 30  # seconds of processor time for a broken neuron


class Run(NamedTuple):
    code: int
    seconds: float
    output: str


@pytest.fixture(scope="session")
def theorems() -> Iterator[Callable[..., Run]]:
    """``theorems(*arguments)`` runs ``pytest *arguments`` from the root of the repository."""
    command = [sys.executable, "-m", "tests.neurons.server"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin
        assert server.stdout

        def run(*arguments: str) -> Run:
            assert server.stdin
            assert server.stdout
            print(json.dumps([*arguments, "-q", "-p", "no:cacheprovider"]), file=server.stdin, flush=True)
            return Run(**json.loads(server.stdout.readline()))

        yield run
        server.stdin.close()


CORE = sorted(str(path) for path in Path("theorems").glob("test_*.py") if "networks" not in path.name)


def test_independent_neuron_passes(theorems: Callable[..., Run]) -> None:
    run = theorems("theorems", "--impl", "tests.neurons.independent:independent")
    assert run.code == pytest.ExitCode.OK, run.output
    assert "skipped" not in run.output
    assert set(verdicts(run.output).values()) == {"holds"}
    assert "about the equations" not in run.output
    assert "about networks" not in run.output


def verdicts(output: str) -> dict[str, str]:
    """Of the terminal's table: statement and word."""
    found = {}
    for line in output.splitlines():
        if line[:24].strip() in STATEMENTS:
            found[line[:24].strip()] = line[24:36].strip()
    return found


@pytest.mark.parametrize("neuron", CANNOT_BE_ASKED)
def test_a_neuron_that_cannot_be_asked_is_one_error(theorems: Callable[..., Run], neuron: str) -> None:
    """One failure, the contract's; nothing is credited."""
    run = theorems("theorems", "--impl", f"tests.neurons.foreign:{neuron}")
    assert run.code == pytest.ExitCode.TESTS_FAILED, run.output
    assert len(run.output.splitlines()) <= 60, run.output
    assert max(map(len, run.output.splitlines())) <= 240, run.output
    assert run.output.count(CANNOT_BE_ASKED[neuron]) == 1, run.output
    assert "1 failed" in run.output
    assert " passed" not in run.output
    found = verdicts(run.output)
    assert found.pop("Contract") == "FAILS"
    assert set(found.values()) == {"not asked"}


@pytest.mark.parametrize("neuron", OTHER_CONVENTIONS)
def test_a_convention_is_named_and_no_bug(theorems: Callable[..., Run], neuron: str) -> None:
    """Named in one line with an example, exit code 0; the equations hold with it, what else does is told from what does not."""
    name, example, asked = OTHER_CONVENTIONS[neuron]
    chosen = [argument for statement in asked for argument in ("--statement", statement)]
    run = theorems("theorems", *chosen, "--impl", f"tests.neurons.foreign:{neuron}")
    assert run.code == pytest.ExitCode.OK, run.output
    assert "Nothing else fails: exit code 0" in run.output
    lines = run.output.splitlines()
    assert len(lines) <= 60, run.output
    (line,) = [line for line in lines if line.startswith(f"  {name}")]
    assert example in line
    assert "FAILS" not in run.output
    assert verdicts(run.output) == asked


@pytest.mark.parametrize(
    ("neuron", "convention", "statement"),
    [
        ("tired", "hard reset", "Eqs. 5-6 (M-HT)"),
        ("frozen_sigmoid", "another surrogate gradient", "Eqs. 8-9 (gradients)"),
        ("downhill", "", "Eqs. 8-9 (gradients)"),
    ],
)
def test_a_fault_beside_a_convention_fails(
    theorems: Callable[..., Run], neuron: str, convention: str, statement: str
) -> None:
    """A convention explains what it is, and nothing else."""
    chosen = ["--statement", "Conventions", "--statement", statement]
    run = theorems("theorems", *chosen, "--impl", f"tests.neurons.foreign:{neuron}")
    assert run.code == pytest.ExitCode.TESTS_FAILED, run.output
    assert verdicts(run.output) == {"Conventions": "differs" if convention else "holds", statement: "FAILS"}
    assert f"\n  {convention}" in run.output


@pytest.mark.parametrize(
    ("neuron", "statement", "words"),
    [
        ("nan_at_three_quarters", "Eqs. 5-6", ": not finite: [nan"),
        ("nan_at_three_quarters", "Contract", ""),
        ("no_backward", "T-GIM to STBP", "IndexError: list index out of range"),
        ("ceils", "Contract", ""),
        ("ceils", "Eqs. 5-6", "got      [1]"),
    ],
)
def test_what_fails_says_with_what_it_can_be_seen(
    theorems: Callable[..., Run], neuron: str, statement: str, words: str
) -> None:
    run = theorems("theorems", "--statement", statement, "--impl", f"tests.neurons.foreign:{neuron}")
    if not words:
        assert run.code == pytest.ExitCode.OK, run.output
        return
    assert run.code == pytest.ExitCode.TESTS_FAILED, run.output
    assert words in run.output
    assert repeated(run.output).returncode == (neuron == "no_backward")


def test_a_reproduction_is_found_where_pytest_indents_it() -> None:
    told = (
        "window at m = [1]: [0] != [1]\n  import torch; from theorems.impl import Loaded\n  print(1)\nassert [0] == [1]"
    )
    block = failure("test_gradients.py::test_window_edges", AssertionError(told))["block"]
    assert block.endswith("\nreproduce:\nimport torch; from theorems.impl import Loaded\nprint(1)")


def repeated(output: str) -> subprocess.CompletedProcess[str]:
    """The first reproduction in the output, run as it stands."""
    lines = output.splitlines()
    source = lines[lines.index("reproduce:") + 1 :]
    end = next(i for i, line in enumerate(source) if line.startswith("print("))
    command = [sys.executable, "-c", "\n".join(source[: end + 1])]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_qcfs_by_torchs_clamp_is_right_up_to_2_13(theorems: Callable[..., Run]) -> None:
    """From 2.14 on nothing passes at the clip's bounds: results/compatibility.md."""
    asked = ("Conventions", "Eq. 4 (QCFS)", "Theorem 4.4", "T-GIM to QCFS")
    chosen = [argument for statement in asked for argument in ("--statement", statement)]
    run = theorems("theorems", *chosen, "--impl", "tests.neurons.foreign:torch_clamp")
    assert run.code == pytest.ExitCode.OK, run.output
    old = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)
    other = {} if old else {"Conventions": "differs", "Eq. 4 (QCFS)": "in part"}
    assert verdicts(run.output) == dict.fromkeys(asked, "holds") | other
    assert ("no gradient at the clip's bounds" in run.output) is not old


def test_answers_like_no_known_neurons_are_told(theorems: Callable[..., Run]) -> None:
    run = theorems("theorems", "--statement", "Conventions", "--impl", "tests.neurons.broken:PartialReset_neuron")
    assert run.code == pytest.ExitCode.TESTS_FAILED, run.output
    assert verdicts(run.output) == {"Conventions": "FAILS"}
    assert (
        "mht fits no known neuron: L = 2, T = 3, theta = 1, v(0) = 0, I = (-1/2, 3, 1/2): s = (0, 2, 2), v = ("
        in run.output
    )


@pytest.mark.parametrize("stricter", ["--no-conventions", "-x"])
def test_a_convention_fails_where_that_is_asked_or_the_rest_was_not(
    theorems: Callable[..., Run], stricter: str
) -> None:
    chosen = ["--statement", "Conventions", "--statement", "Eq. 4"]
    run = theorems("theorems", *chosen, stricter, "--impl", "tests.neurons.foreign:clamped")
    assert run.code == pytest.ExitCode.TESTS_FAILED, run.output
    assert "exit code 0" not in run.output


@pytest.mark.parametrize("arguments", [["-p", "tests.neurons.swapped"], ["--no-conventions", *SIGMOID]])
def test_where_no_convention_is_allowed_the_papers_is_asked(arguments: list[str]) -> None:
    """Of our own neuron always; whatever else is asked, nothing is skipped for a convention's sake."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "theorems/test_gradients.py", *arguments]
    done = subprocess.run([*command, "-k", "window_edges"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(
    ("statements", "result"),
    [
        (["Contract", "Conventions", "Lemma 4.1"], pytest.ExitCode.TESTS_FAILED),  # QCFS's gradient explains no spike
        (["Eq. 7 (LM-HT)"], pytest.ExitCode.NO_TESTS_COLLECTED),
    ],
)
def test_nothing_is_forgiven_for_another_things_convention(
    theorems: Callable[..., Run], statements: list[str], result: pytest.ExitCode
) -> None:
    chosen = [argument for statement in statements for argument in ("--statement", statement)]
    run = theorems("theorems", *chosen, "--impl", "tests.neurons.foreign:two_levels")
    assert run.code == result, run.output


def test_a_module_that_does_not_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken_off.py").write_text("x = (")
    command = [sys.executable, "-m", "theorems", "broken_off:x"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--impl broken_off:x: SyntaxError" in done.stderr
    alone = subprocess.run([*command[:3], "--no-gradients"], cwd=ROOT, capture_output=True, text=True)
    assert alone.returncode == pytest.ExitCode.USAGE_ERROR
    assert "which neuron?" in alone.stderr


def test_only_what_a_convention_explains_is_forgiven() -> None:
    def outcome(name: str, result: str, **more: Any) -> Outcome:
        return Outcome(result, "", NEURON, [[name, "none", "", "holds"]], **more)

    report = StatementReport("mine", None)
    report.outcomes = {
        "a": outcome("Conventions", "failed", conventions=["hard reset: ..."]),
        "b": outcome("Eqs. 5-6 (M-HT)", "passed"),
        "c": outcome("Lemma 4.1", "failed"),
    }
    assert report.all_explained(2)
    assert not report.all_explained(3)  # some other test of the session failed, too
    report.outcomes["b"] = outcome("Eqs. 5-6 (M-HT)", "skipped")
    assert not report.all_explained(2)  # nobody knows whether the equations hold with it
    report.outcomes["b"] = outcome("Eqs. 5-6 (M-HT)", "failed")
    assert not report.all_explained(3)


@pytest.mark.parametrize("statement", ["contract", "gradients", "as_used"])
def test_the_broken_neurons_base_passes(theorems: Callable[..., Run], statement: str) -> None:
    """So that it is the one fault that makes a broken neuron fail."""
    run = theorems(f"theorems/test_{statement}.py", "--impl", "tests.neurons.broken:right")
    assert run.code == pytest.ExitCode.OK, run.output


@pytest.mark.parametrize(
    ("neuron", "statement"), [(cls.__name__, name) for cls, names in CAUGHT_BY.items() for name in names]
)
def test_broken_neurons_fail(theorems: Callable[..., Run], neuron: str, statement: str) -> None:
    """The named file rejects it, within 30 s of processor time; the first failure is enough, it needn't be the smallest."""
    target = f"tests.neurons.broken:{neuron}_neuron"
    run = theorems(f"theorems/test_{statement}.py", "-x", "--hypothesis-profile=unshrunk", "--impl", target)
    assert run.code == pytest.ExitCode.TESTS_FAILED, run.output
    assert run.seconds < LIMIT


def test_enough_broken_neurons() -> None:
    assert len(CAUGHT_BY) >= 25


def test_failure_carries_everything_and_reproduces(theorems: Callable[..., Run]) -> None:
    run = theorems(
        "theorems/test_contract.py", "-x", "-k", "test_mht", "--impl", "tests.neurons.broken:PartialReset_neuron"
    )
    for label in ("theta", "L, T", "leak", "v(0)", "currents", "spikes", "expected", "got"):
        assert f" {label} " in run.output, f"{label} missing:\n{run.output}"
    pasted = repeated(run.output)
    assert pasted.returncode == 0, pasted.stderr
    assert pasted.stdout.startswith("(tensor(")


def test_gradient_failure_reproduces(theorems: Callable[..., Run]) -> None:
    run = theorems(
        "theorems/test_gradients.py", "-x", "-k", "test_lmht", "--impl", "tests.neurons.broken:NoLeakGradient_neuron"
    )
    pasted = repeated(run.output)
    assert pasted.returncode == 0, pasted.stderr
    assert "tensor(" in pasted.stdout


def test_missing_methods_skip(theorems: Callable[..., Run]) -> None:
    run = theorems(
        "theorems/test_contract.py",
        "theorems/test_theorem_4_2_ii.py",
        "--impl",
        "tests.neurons.independent:only_mht",
    )
    assert run.code == pytest.ExitCode.OK, run.output
    for method in ("integrate_and_fire", "lmht", "qcfs"):
        assert f"{method} not provided" in run.output
    assert "mht not provided" not in run.output.replace("lmht not provided", "")


@pytest.mark.parametrize("target", ["lmht", "lmht:", "no_such_module:x", "lmht:no_such_object", "math:pi"])
def test_unusable_implementation_is_one_clear_error(theorems: Callable[..., Run], target: str) -> None:
    run = theorems("theorems/test_contract.py", "--impl", target)
    assert run.code == pytest.ExitCode.USAGE_ERROR, run.output
    assert "--impl" in run.output


def test_report(theorems: Callable[..., Run], tmp_path: Path) -> None:
    """The same table on every run, on one process or two; a failure and a skip show."""
    chosen = ["theorems/test_lemma_4_1.py", "theorems/test_tgim_stbp.py"]
    tables = []
    for number, extra in enumerate(([], ["-n", "2"], ["--impl", "tests.neurons.independent:only_mht"])):
        path = tmp_path / f"{number}.md"
        run = theorems(*chosen, "-k", "necessity or multi_level or differ or forward", "--report", str(path), *extra)
        assert run.code == pytest.ExitCode.OK, run.output
        tables.append(path.read_text())
    alone, spread, partial = tables
    assert alone == spread
    assert "| Lemma 4.1 | v(t-1) in [0, theta) |" in alone
    assert "L = 2, T = 1, theta = 1, v(0) = -1/2, I = (5/2): M-HT emits [2], IF [1] a window" in alone
    assert "not checked: integrate_and_fire not provided" in partial
    broken = tmp_path / "broken.md"
    theorems(chosen[0], "--report", str(broken), "--impl", "tests.neurons.broken:NegativeSpikes_neuron")
    assert "FAILS: test_lemma_4_1.py::test_multi_level_step" in broken.read_text()
    assert "| Lemma 4.1 | one M-HT step emits what L IF steps with I/L emit | the neuron: FAILS |" in broken.read_text()


def test_statements_are_listed_and_chosen(theorems: Callable[..., Run]) -> None:
    run = theorems("theorems", "--statements")
    assert run.code == pytest.ExitCode.OK, run.output
    assert [line for line in run.output.splitlines() if line[:24].strip() in STATEMENTS][4].startswith("Eq. 7 (LM-HT) ")
    run = theorems("theorems", "--statement", "lemma a.1", "--impl", "theorems.impl:eager")
    assert verdicts(run.output) == {"Lemma A.1": "holds"}
    run = theorems("theorems", "--statement", "Theorem 5")
    assert run.code == pytest.ExitCode.USAGE_ERROR, run.output
    assert "'Theorem 5' is no statement; --statements lists them" in run.output


def test_no_gradients(theorems: Callable[..., Run]) -> None:
    """A neuron without any is not blamed for it; without the option it is."""
    arguments = (
        "theorems",
        "--statement",
        "Conventions",
        "--statement",
        "Eqs. 8-9",
        "--impl",
        "tests.neurons.foreign:inference",
    )
    assert verdicts(theorems(*arguments, "-x").output)["Eqs. 8-9 (gradients)"] == "FAILS"
    run = theorems(*arguments, "--no-gradients")
    assert run.code == pytest.ExitCode.OK, run.output
    assert verdicts(run.output) == {"Conventions": "holds", "Eqs. 8-9 (gradients)": "not asked"}


def test_what_a_fresh_neuron_does_otherwise_is_said(theorems: Callable[..., Run]) -> None:
    run = theorems("theorems/test_contract.py", "-k", "test_mht", "-x", "--impl", "tests.neurons.foreign:tires")
    assert run.code == pytest.ExitCode.TESTS_FAILED, run.output
    assert "not repeatable: a freshly loaded neuron answers otherwise" in run.output


def right(x: Tensor) -> Tensor:
    return x + 1


def wrong(x: Tensor) -> Tensor:
    return x


def raises(x: Tensor) -> Tensor:
    raise RuntimeError("no more")


@pytest.mark.parametrize(
    ("once", "again", "repeats"),
    [
        (right, right, True),
        (right, wrong, False),
        (right, raises, False),
        (raises, raises, True),
        (raises, right, False),
    ],
)
def test_what_does_not_repeat_is_told(once: Any, again: Any, repeats: bool) -> None:
    impl: Any = SimpleNamespace(target="mine:mine", mht=once, fresh=lambda: SimpleNamespace(mht=again))
    try:
        source = check.Call(impl, "mht", torch.ones(2)).source
    except RuntimeError as error:
        (source,) = error.__notes__
    assert ("not repeatable" not in source) == repeats


def test_nothing_is_said_of_a_neuron_that_cannot_be_loaded_again() -> None:
    impl: Any = SimpleNamespace(target="mine:mine", mht=right, fresh=lambda: raises(torch.ones(1)))
    assert check.Call(impl, "mht", torch.ones(2)).repeats


def test_every_test_names_its_statement(theorems: Callable[..., Run]) -> None:
    unnamed = theorems(*CORE, "--collect-only", "-m", "not statement")
    assert unnamed.code == pytest.ExitCode.NO_TESTS_COLLECTED, unnamed.output


def count(strategy: st.SearchStrategy[Case], examples: int = 100) -> Counter[str]:
    """What the potentials of a strategy's cases really are, whatever label they were drawn under."""
    seen: Counter[str] = Counter()

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def look(case: Case) -> None:
        seen[str(case.dtype)] += 1
        seen[f"L = {case.levels}"] += 1
        seen[f"T = {case.steps}"] += 1
        for trace in case.traces():
            for m in trace.m:
                seen["potentials"] += 1
                seen["tie"] += (m / case.theta).denominator == 1 and 1 <= m / case.theta <= case.levels
                seen["negative"] += m < 0
                seen["saturated"] += m >= (case.levels + 1) * case.theta
                seen["fires, not saturated"] += case.theta <= m < case.levels * case.theta
                seen["edge"] += m == case.theta / 2 or m == (2 * case.levels + 1) * case.theta / 2

    look()
    return seen


STRATEGIES = {
    "cases": cases(),
    "any start": cases(v0="any"),
    "spread": cases(spread=True),
    "uniform": cases(uniform=True),
    "mixed": mixed_cases(),
    "identity": mixed_cases(mixing="identity"),
    "uniform T-GIM": mixed_cases(mixing="uniform", steps=POWERS, v0="half", leaks=NO_LEAK),
}


def test_strategies_reach_the_hard_inputs() -> None:
    """Each strategy by itself every regime; all together every L, T and dtype often."""
    total: Counter[str] = Counter()
    for name, strategy in STRATEGIES.items():
        seen = count(strategy)
        for kind in ("tie", "negative", "saturated", "fires, not saturated"):
            assert seen[kind] >= 0.03 * seen["potentials"], f"{name}, {kind}: {seen}"
        if name in ("mixed", "identity"):
            assert seen["edge"] >= 0.1 * seen["potentials"], f"{name}: {seen}"
        total += seen
    for size in range(1, 9):
        assert min(total[f"L = {size}"], total[f"T = {size}"]) >= 20, total
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        assert total[f"torch.{dtype}"] >= 50, total


def test_quantised_cases_reach_ties_and_both_ends() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=200, derandomize=True, database=None, deadline=None)
    @given(quantised_cases())
    def look(case: Case) -> None:
        for (x,) in case.currents:
            position = x * case.levels / case.theta
            seen["all"] += 1
            seen["tie"] += position.denominator == 2
            seen["below"] += position < 0
            seen["above"] += position > case.levels

    look()
    assert min(seen["tie"], seen["below"], seen["above"]) >= 0.05 * seen["all"], seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_exact_is_what_the_format_holds(dtype: torch.dtype) -> None:
    """Every multiple of the unit up to the sum of magnitudes, by torch itself."""
    draw, seen = random.Random(0), Counter[bool]()
    for _ in range(200):
        most, power = 2 ** FORMATS[dtype][0], 2.0 ** draw.randint(-8, 2)
        numbers = [draw.randint(-most, most) >> draw.randint(0, 3) for _ in range(3)]
        terms, whole = [Fraction(power * n) for n in numbers], gcd(*numbers)
        unit = whole & -whole or 1
        multiples = torch.arange(0, sum(map(abs, numbers)) + 1, unit).double() * power
        held = torch.equal(multiples.to(dtype).double(), multiples)
        assert of_sum(*terms).within(dtype) == held, terms
        seen[held] += 1
    assert min(seen[True], seen[False]) > 10, seen
