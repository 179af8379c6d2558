"""Neurons of SpikingJelly and snnTorch under ``theorems/``: what they keep, and the conventions in which they differ."""

import importlib
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from theorems import oracle
from theorems.adapters import Convention

ROOT = Path(__file__).parents[1]
ADAPTERS = [
    ("spikingjelly", "if_node"),
    ("spikingjelly", "ilif_node"),
    ("snntorch", "immediate"),
    ("snntorch", "delayed"),
]
FILES = ["contract", "lemma_4_1", "theorem_4_2_i", "theorem_4_2_ii", "corollary_4_3", "lemma_a_1", "theorem_a_2"]


def adapter(library: str, name: str) -> Any:
    pytest.importorskip(library, reason=f"{library} is not installed; run tox -e interop")
    return getattr(importlib.import_module(f"theorems.adapters.{library}"), name)


@pytest.mark.parametrize(("library", "name"), ADAPTERS)
def test_suite(library: str, name: str) -> None:
    """Without a convention that differs, every statement about the methods that exist holds; with one, the suite notices."""
    differs = adapter(library, name).conventions
    files = [f"theorems/test_{file}.py" for file in FILES]
    command = [sys.executable, "-m", "pytest", *files, "-q", "--hypothesis-profile=unshrunk", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "--impl", f"theorems.adapters.{library}:{name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == (pytest.ExitCode.TESTS_FAILED if differs else pytest.ExitCode.OK), run.stdout
    assert " passed" in run.stdout


@pytest.mark.parametrize(("library", "name"), ADAPTERS)
def test_conventions(library: str, name: str) -> None:
    """Each example is what the library does, and not what the paper says."""
    impl = adapter(library, name)
    for convention in impl.conventions:
        spikes, v = answer(impl, convention)
        got = ([float(s) for s in spikes], [float(u) for u in v], v.dtype)
        assert got == (list(convention.spikes), list(convention.v), convention.v_dtype), convention.name
        levels = 2 if hasattr(impl, "mht") else 1
        current, leak, v0 = (
            [Fraction(i) for i in convention.current],
            Fraction(convention.leak),
            Fraction(convention.v0),
        )
        paper = oracle.mht(current, levels=levels, theta=oracle.ONE, leak=leak, v0=v0)
        expected = ([*map(float, paper.s)], [*map(float, paper.v)], convention.dtype)
        assert got != expected, f"no difference: {convention.name}"
        print(f"{impl.name} {convention.name}: I = {convention.current}: {got}, the paper: {expected}")


def answer(impl: Any, convention: Convention) -> tuple[torch.Tensor, torch.Tensor]:
    current = torch.tensor(convention.current, dtype=convention.dtype)
    arguments = {"theta": 1.0, "leak": convention.leak, "v0": convention.v0}
    return (
        impl.mht(current, levels=2, **arguments)
        if hasattr(impl, "mht")
        else impl.integrate_and_fire(current, **arguments)
    )
