"""What the neuron decides otherwise than the paper, and what known neurons do: named, so that no other statement is blamed."""

from collections.abc import Callable

import pytest

from theorems.impl import Loaded

convention = pytest.mark.statement(
    "Conventions",
    precondition="none",
    how="answers to a battery of exact cases against the paper's rules and those of known neurons",
)


@convention
def test_known(impl: Loaded) -> None:
    """Or else nothing is excused by its conventions."""
    if impl.conventions.unknown:
        pytest.fail("\n".join(impl.conventions.unknown), pytrace=False)


@convention
def test_conventions(impl: Loaded, record_property: Callable[[str, object], None]) -> None:
    lines = list(impl.conventions.lines.values())
    for line in lines:
        record_property("convention", line)
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)
