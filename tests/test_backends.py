"""The fused operator under the suite of statements, as anyone's neuron: compiled, and Triton in its interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmht.kernels import compiled

EXHAUSTIVE = "theorems/test_theorem_4_4.py::test_expected_difference_of_the_implementation"


@pytest.mark.parametrize("backend", ["compiled", "triton"])
def test_theorems(backend: str) -> None:
    """In a process of its own, as Triton reads the variable when it is imported. tests/test_kernels.py compares backends closely.

    Whole networks and 256 sizes of one statement take the interpreter minutes: ``tox run -e gpu`` gives Triton all of it.
    """
    if backend == "triton":
        pytest.importorskip("triton")
    elif not compiled.available():
        pytest.skip("no C++ compiler")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    runs: list[tuple[list[str], dict[str, str]]] = [
        (["theorems", "--no-conventions", "--hypothesis-profile=quick", "--impl", f"lmht.kernels.impl:{backend}"], {})
    ]
    if backend == "triton":
        runs[0][0].append(f"--deselect={EXHAUSTIVE}")
    else:
        runs.append((["theorems/test_networks.py"], {"LMHT_BACKEND": backend}))
    for what, chosen in runs:
        done = subprocess.run(
            [*command, *what],
            cwd=Path(__file__).parents[1],
            env=environment | chosen,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-5000:]
        assert " passed" in done.stdout
