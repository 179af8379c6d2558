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


def adapter(library: str, name: str) -> Any:
    pytest.importorskip(library, reason=f"{library} is not installed; run tox -e interop")
    return getattr(importlib.import_module(f"theorems.adapters.{library}"), name)


@pytest.mark.parametrize(("library", "name"), ADAPTERS)
def test_suite(library: str, name: str) -> None:
    """The suite names the neuron's conventions, those of its adapter, and finds no other fault."""
    impl = adapter(library, name)
    command = [sys.executable, "-m", "theorems", f"theorems.adapters.{library}:{name}", "--no-gradients"]
    run = subprocess.run([*command, "--hypothesis-profile=unshrunk"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.OK, run.stdout
    for convention in impl.conventions:
        assert f"  {convention.name}" in run.stdout, run.stdout
    assert ("Nothing else fails: exit code 0" in run.stdout) is bool(impl.conventions)
    assert "Eqs. 1-2 (IF, LIF)      holds" in run.stdout or "Eqs. 5-6 (M-HT)         holds" in run.stdout
    assert len(run.stdout.splitlines()) <= 60


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
