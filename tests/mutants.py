"""Mutants of the equations' code, and which of them the tests let live: results/mutants.md.

    python tests/mutants.py run [--suite NAME] [--minutes 25]    test mutants at random: those without an outcome in
                                                                 out/mutants/NAME, but first those that lived, as there may be
                                                                 a new test
    python tests/mutants.py page                                 the page, from out/mutants and the reasons in mutants.toml

Cosmic Ray makes the mutants, in a copy of the tree under out/mutants. Each is tested in a fork of a process that has imported torch
already: its tests take seconds, that import ten.
"""

import argparse
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cosmic_ray.commands import init
from cosmic_ray.mutating import use_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkResult
from hypothesis import Phase, settings

ROOT = Path(__file__).parents[1]
OUT = ROOT / "out" / "mutants"
EXAMPLES = 10  # of a property
LIMIT = 300  # seconds of a mutant's tests on the processor, after which it counts as killed


class Suite(NamedTuple):
    """Modules whose mutants are made, files of tests that are to kill them, and the environment of these."""

    name: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]
    environment: dict[str, str]

    @property
    def paths(self) -> list[Path]:
        return [Path("lmht", name) for name in self.modules]

    @property
    def folder(self) -> Path:
        return OUT / self.name

    @property
    def session(self) -> Path:
        return self.folder / "session.sqlite"

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def last(self) -> Path:
        """What the last tests said."""
        return self.folder / "last.txt"


EAGER = ("tests/test_neurons.py", "theorems/test_gradients.py", "theorems/test_contract.py")
KERNELS = ("tests/test_kernels.py", "tests/test_fusion.py")
SUITES = (
    Suite("equations", ("functional.py", "surrogate.py", "tgim.py"), EAGER, {"LMHT_BACKEND": "eager"}),
    Suite("compiled", ("kernels/operator.py", "kernels/compiled.py"), KERNELS, {}),
    Suite("triton", ("kernels/gpu.py",), KERNELS[:1], {"TRITON_INTERPRET": "1"}),
)

# Of the operators that Cosmic Ray has, those whose mutants could be somebody's slip: each binary operator has one other to become.
BINARY = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Div_FloorDiv", "BitAnd_BitOr")
OTHERS = ("AddNot", "NumberReplacer", "RemoveDecorator", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse")
OTHERS += ("ReplaceUnaryOperator_Delete_Not", "ZeroIterationForLoop")


def wanted(operator: str) -> bool:
    name = operator.partition("/")[2]
    comparison = name.removeprefix("ReplaceComparisonOperator_")
    if comparison != name:  # that `==` is `is` for small integers says nothing of a test
        return comparison in ("Is_IsNot", "IsNot_Is") or "Is" not in comparison
    return name.removeprefix("ReplaceBinaryOperator_") in BINARY or name in OTHERS


def prepare(db: WorkDB, suite: Suite) -> None:
    """A copy of what git knows of, and the list of mutants."""
    tracked = ["lmht", "theorems", "tests", "pyproject.toml"]
    names = subprocess.run(["git", "ls-files", *tracked], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shutil.rmtree(suite.tree, ignore_errors=True)
    for name in names.splitlines():
        (suite.tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, suite.tree / name)
    os.chdir(suite.tree)
    if not db.num_work_items:
        init(suite.paths, db, {})
        left_out = [item.job_id for item in db.work_items if not wanted(item.mutations[0].operator_name)]
        db.set_multiple_results(left_out, WorkResult(WorkerOutcome.SKIPPED, "not among the chosen operators"))


def test(suite: Suite) -> int:
    """Exit code of the tests of the tree as it stands; minus the signal that ended them."""
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        signal.alarm(12 * LIMIT)  # one that waits for ever
        os.dup2(os.open(suite.last, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        phases = [Phase.explicit, Phase.generate]  # that it fails is enough, however large the example
        options: dict[str, Any] = {"derandomize": True, "database": None, "deadline": None, "phases": phases}
        settings.register_profile("mutants", max_examples=EXAMPLES, **options)
        plugins = ["-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin", "--hypothesis-profile=mutants"]
        code = pytest.main(["-x", "-q", *plugins, *suite.tests])
        ours = importlib.import_module("lmht").__file__ or ""
        os._exit(code or not ours.startswith(str(suite.tree)))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(suite: Suite, minutes: float) -> None:
    os.environ |= suite.environment | {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for module in ("torch._dynamo", "hypothesis.internal.conjecture.engine"):  # what takes the seconds
        importlib.import_module(module)
    suite.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    with use_db(suite.session) as db:
        prepare(db, suite)
        sys.path[0] = str(suite.tree)
        began = time.monotonic()
        if test(suite):
            raise SystemExit(f"the tests fail without a mutation: {suite.last}")
        pending = [item for item, result in db.completed_work_items if result.test_outcome == TestOutcome.SURVIVED]
        pending += db.pending_work_items
        sys.dont_write_bytecode = True  # a mutant of the same size and second would be taken for the last one
        print(f"{len(pending)} mutants; the tests without a mutation took {time.monotonic() - began:.0f} s", flush=True)
        for number, item in enumerate(pending):
            if time.monotonic() > end:
                raise SystemExit(f"time is up: {len(pending) - number} mutants not tested; the same command goes on")
            (mutation,) = item.mutations
            with use_mutation(mutation.module_path, get_operator(mutation.operator_name)(), mutation.occurrence) as two:
                code = test(suite)
            outcome = TestOutcome.KILLED if code else TestOutcome.SURVIVED
            db.set_result(item.job_id, WorkResult(WorkerOutcome.NORMAL, str(code), outcome, changed(*two)))


def changed(before: str, after: str) -> str:
    """The lines that differ."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    if len(before.splitlines()) == len(after.splitlines()):
        return "\n".join(f"-{a.strip()}\n+{b.strip()}" for a, b in pairs if a != b)
    gone = next(a for a, b in pairs if a != b and a.strip())  # a decorator is the one thing that is taken out
    return f"-{gone.strip()}\n+"


def place(mutation: MutationSpec) -> tuple[str, int]:
    return str(mutation.module_path), mutation.start_pos[0]


def page() -> str:
    """The page; SystemExit if a mutant lives without a reason, or a reason is given for none that lives."""
    known = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["lives"]
    reasons = {(one["was"], one["now"]): one["why"] for one in known}
    done, left = [], Counter[str]()
    for suite in SUITES:
        if not suite.session.exists():
            raise SystemExit(f"none of them was tested: tests/mutants.py run --suite {suite.name}")
        with use_db(suite.session, WorkDB.Mode.open) as db:
            done += [(item.mutations[0], result) for item, result in db.completed_work_items]
            left.update(str(item.mutations[0].module_path) for item in db.pending_work_items)
    tested = [(mutation, result) for mutation, result in done if result.worker_outcome == WorkerOutcome.NORMAL]
    lives = [(mutation, result) for mutation, result in tested if result.test_outcome == TestOutcome.SURVIVED]
    rows, without = [], dict(reasons)
    for mutation, result in sorted(lives, key=lambda one: (*place(one[0]), one[1].diff)):
        was, now = (line[1:] for line in str(result.diff).splitlines())
        if (was, now) not in reasons:
            raise SystemExit(f"{mutation.module_path}:{mutation.start_pos[0]} lives and has no reason:\n-{was}\n+{now}")
        without.pop((was, now), None)
        code = [text.replace("|", "\\|") or " " for text in (was, now)]
        rows.append(
            f"| {mutation.module_path}, `{mutation.definition_name}` | `{code[0]}` | `{code[1]}` | {reasons[was, now]} |"
        )
    if without and not left:
        raise SystemExit(f"reasons for mutants that do not live: {list(without)}")
    counts = Counter((str(mutation.module_path), result.test_outcome) for mutation, result in tested)
    lines = [
        "# Mutants of the equations' code, and of the kernels'",
        "",
        "Generated by `tox run -e mutants`, with the reasons in `tests/mutants.toml`. A mutant is one change in one place. It is",
        f"killed if a test fails, on {EXAMPLES} examples a property; Triton's kernels are interpreted on the CPU. Mutants",
        "are drawn at random, until the time is up.",
        "",
        "| module | tests | mutants tested | killed | live | not tested |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for suite in SUITES:
        for module in map(str, suite.paths):
            killed, alive = (counts[module, outcome] for outcome in (TestOutcome.KILLED, TestOutcome.SURVIVED))
            tests = ", ".join(f"`{name}`" for name in suite.tests)
            lines.append(f"| {module} | {tests} | {killed + alive} | {killed} | {alive} | {left[module]} |")
    lines += [
        "",
        f"Left out: {len(done) - len(tested)} that are no likely slip (`+` to `<<`, `==` to `is`).",
        "",
        "## Those that live",
        "",
        "| where | was | is | why no test can or need tell |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Cosmic Ray {version('cosmic-ray')}, torch {version('torch').partition('+')[0]}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "page"))
    names = [suite.name for suite in SUITES]
    parser.add_argument("--suite", choices=names, default="equations", help="of run: whose mutants")
    parser.add_argument("--minutes", type=float, default=120, help="of run: start no further mutant after so long")
    options = parser.parse_args()
    if options.what == "run":
        run(SUITES[names.index(options.suite)], options.minutes)
    else:
        (ROOT / "results" / "mutants.md").write_text(page())


if __name__ == "__main__":
    main()
