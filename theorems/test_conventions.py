"""What the neuron decides otherwise than the paper, and what known neurons do: named, so that no other statement is blamed."""

from collections.abc import Callable

import pytest

from theorems.impl import Loaded


@pytest.mark.statement(
    "Conventions",
    precondition="none",
    how="answers to a battery of exact cases against the paper's rules and those of known neurons",
)
def test_conventions(impl: Loaded, record_property: Callable[[str, object], None]) -> None:
    lines = list(impl.conventions.lines.values())
    for line in lines:
        record_property("convention", line)
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)
