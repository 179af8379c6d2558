"""The suite's options, hooks and fixtures: ``pytest -p theorems.plugin --pyargs theorems --impl MODULE:OBJECT`` from anywhere."""

from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from theorems.impl import DEFAULT, Loaded
from theorems.report import SUBJECTS, StatementReport, failure, statement
from theorems.statements import STATEMENTS, named

HERE = Path(__file__).parent
IMPL: pytest.StashKey[Loaded] = pytest.StashKey()

EXAMPLES = 100
# No deadlines: a slow machine is not a counterexample. No database: a run depends on nothing but the sources.
FOUND = (Phase.explicit, Phase.generate, Phase.target)
SHRUNK = (*FOUND, Phase.shrink)
COMMON = settings(deadline=None, database=None, report_multiple_bugs=False, phases=SHRUNK)
settings.register_profile("default", COMMON, max_examples=EXAMPLES, derandomize=True)
settings.register_profile("thorough", COMMON, max_examples=20 * EXAMPLES)
# for a backend that is compared closely elsewhere
settings.register_profile("quick", COMMON, max_examples=EXAMPLES // 4, derandomize=True)
# default's verdict, sooner: the first failing case instead of the smallest
settings.register_profile("unshrunk", COMMON, max_examples=EXAMPLES, derandomize=True, phases=FOUND)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("theorems")
    group.addoption(
        "--impl",
        metavar="MODULE:OBJECT",
        help=f"the neuron under test, and only what is asked of it (default: {DEFAULT}, and everything else too)",
    )
    group.addoption("--statement", action="append", metavar="NAME", help="only this statement; may be repeated")
    group.addoption("--statements", action="store_true", help="list the statements and end")
    group.addoption("--no-gradients", action="store_true", help="ask for no gradient")
    group.addoption("--no-conventions", action="store_true", help="ask for the paper's conventions alone")
    group.addoption("--report", metavar="FILE", help="write the statements and verdicts as Markdown")


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("--statements"):
        return None
    for name, known in STATEMENTS.items():
        print(f"{name:<24}{known.words}")
    return 0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "statement(name, precondition, how, verdict='holds'): the statement that a test checks, under which precondition "
        "('none' if it needs none) and how; verdict is what the report says when the test passes.",
    )
    config.addinivalue_line("markers", "gradient: asks for a gradient; --no-gradients leaves it out")
    settings.load_profile(config.getoption("--hypothesis-profile", None) or "default")
    foreign = config.getoption("--impl", None)
    strict = config.getoption("--no-conventions", False) or not foreign  # ours has no conventions but the paper's
    loaded = Loaded(foreign or DEFAULT, not config.getoption("--no-gradients", False), strict)
    config.stash[IMPL] = loaded
    if not hasattr(config, "workerinput"):
        path, verbose = config.getoption("--report", None), config.option.verbose > 0
        config.pluginmanager.register(StatementReport(loaded.name, path, verbose, strict))


def subject(item: pytest.Item) -> str:
    """Whom a test is about: it credits the neuron only if it asks it."""
    fixtures = getattr(item, "fixturenames", ())
    return next(subject for fixture, subject in SUBJECTS.items() if not fixture or fixture in fixtures)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Contract first; with ``--impl`` only what asks the neuron; with ``--statement`` only that."""
    try:
        chosen = [named(text) for text in config.getoption("--statement", None) or ()]
    except LookupError as error:
        raise pytest.UsageError(str(error)) from error
    ranks, ours, left_out = {name: rank for rank, name in enumerate(STATEMENTS)}, {}, []
    for item in [item for item in items if item.path.is_relative_to(HERE)]:
        about, names = subject(item), []
        item.user_properties.append(("subject", about))
        for mark in item.iter_markers("statement"):
            try:
                names.append(mark.args[0])
                item.user_properties.append(("statement", statement(*mark.args, **mark.kwargs)))
            except (IndexError, TypeError) as error:
                raise pytest.UsageError(f"{item.nodeid}: {error}") from error
        if unknown := [name for name in names if name not in ranks]:
            raise pytest.UsageError(f"{item.nodeid}: theorems/statements.py lacks {unknown}")
        foreign = config.getoption("--impl", None) and about != SUBJECTS["loaded"]
        if foreign or (chosen and not set(chosen) & set(names)):
            left_out.append(item)
        else:
            ours[item] = min((ranks[name] for name in names), default=len(ranks))
    others = [item for item in items if not item.path.is_relative_to(HERE)]
    items[:] = [*sorted(ours, key=ours.__getitem__), *others]
    if left_out:
        config.hook.pytest_deselected(items=left_out)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.config.getoption("--no-gradients", False) and item.get_closest_marker("gradient"):
        pytest.skip("--no-gradients")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and call.excinfo and item.path.is_relative_to(HERE):
        report.user_properties.append(("failure", failure(item.nodeid, call.excinfo.value)))
    return report


@pytest.fixture(scope="session")
def loaded(pytestconfig: pytest.Config) -> Loaded:
    """The neuron under test, whatever it does."""
    return pytestconfig.stash[IMPL]


@pytest.fixture(scope="session")
def impl(loaded: Loaded) -> Loaded:
    """The neuron under test, if it can be called as the contract says."""
    if loaded.fault:
        pytest.skip("the contract is broken")
    return loaded


@pytest.fixture(scope="session")
def ours() -> None:
    """For tests of this library's modules and networks, which no ``--impl`` is part of."""


@pytest.fixture
def counterexample(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints, and records for the report, the smallest counterexample found outside the statement's precondition."""
    if "loaded" in request.fixturenames:
        request.getfixturevalue("impl").follows_the_paper("it is the paper's neuron that the counterexample is for")

    def record(text: str) -> None:
        print(f"counterexample: {text}")
        request.node.user_properties.append(("counterexample", text))

    return record
