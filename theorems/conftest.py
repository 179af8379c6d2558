"""Options, profiles, the ``statement`` marker and the fixtures of the suite."""

from collections.abc import Callable

import pytest
from hypothesis import Phase, settings

from theorems.impl import DEFAULT, Loaded
from theorems.report import StatementReport

EXAMPLES = 100
# No deadlines: a slow machine is not a counterexample. No database: a run depends on nothing but the sources.
FOUND = (Phase.explicit, Phase.generate, Phase.target)
SHRUNK = (*FOUND, Phase.shrink)
COMMON = settings(deadline=None, database=None, report_multiple_bugs=False, phases=SHRUNK)
settings.register_profile("default", COMMON, max_examples=EXAMPLES, derandomize=True)
settings.register_profile("thorough", COMMON, max_examples=20 * EXAMPLES)
# default's verdict, sooner: the first failing case instead of the smallest
settings.register_profile("unshrunk", COMMON, max_examples=EXAMPLES, derandomize=True, phases=FOUND)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("theorems")
    group.addoption("--impl", default=DEFAULT, metavar="MODULE:OBJECT", help="neuron under test (default: %(default)s)")
    group.addoption("--report", metavar="FILE", help="write the Markdown table of statements and verdicts")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "statement(name, precondition, how, verdict='holds'): the statement that a test checks, under which precondition "
        "('none' if it needs none) and how; verdict is what the report says when the test passes.",
    )
    loaded = Loaded(config.getoption("--impl"))
    config.stash[IMPL] = loaded
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(StatementReport(loaded.name, config.getoption("--report")))


IMPL: pytest.StashKey[Loaded] = pytest.StashKey()


def statement(name: str, *, precondition: str, how: str, verdict: str = "holds") -> list[str]:
    """The arguments of the marker, checked, as what travels with a test's report."""
    return [name, precondition, how, verdict]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("statement"):
            try:
                item.user_properties.append(("statement", statement(*mark.args, **mark.kwargs)))
            except TypeError as error:
                raise pytest.UsageError(f"{item.nodeid}: {error}") from error


@pytest.fixture(scope="session")
def impl(pytestconfig: pytest.Config) -> Loaded:
    """The neuron under test."""
    return pytestconfig.stash[IMPL]


@pytest.fixture
def counterexample(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints, and records for the report, the smallest counterexample found outside the statement's precondition."""

    def record(text: str) -> None:
        print(f"counterexample: {text}")
        request.node.user_properties.append(("counterexample", text))

    return record
