"""The built wheel, from a directory that knows nothing of this repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MINE = """
from lmht import functional
class Mine:
    name = "mine"
    mht = staticmethod(functional.mht)
mine = Mine()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as it lies in site-packages."""
    pytest.importorskip("setuptools", minversion="77")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("lmht", "theorems", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(built)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(built / done.stdout.split()[-1]) as archive:
        archive.extractall(built)
    return built


def run(wheel: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_content(wheel: Path) -> None:
    """Typed, with the suite and its command; neither benchmarks nor tests; torch is all that the library asks for."""
    (information,) = wheel.glob("*.dist-info")
    metadata = PathDistribution(information)
    assert {path.parent.name for path in wheel.glob("*/py.typed")} == {"lmht", "theorems"}
    assert {path.name for path in wheel.iterdir() if path.suffix == ""} == {"lmht", "theorems"}
    (needed,) = [requirement for requirement in metadata.requires or () if "extra ==" not in requirement]
    assert needed.startswith("torch>=")
    (command,) = metadata.entry_points.select(group="console_scripts", name="lmht-theorems")
    assert command.value == "theorems.__main__:main"


def test_the_library_alone_needs_torch_only(wheel: Path, tmp_path: Path) -> None:
    extra = ["hypothesis", "pytest", "z3", "mlflow", "pandas", "sklearn", "torchvision", "ray", "theorems", "triton"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({extra}))  # not to be had
import lmht, lmht.networks, lmht.conversion, lmht.reparameterize
print(lmht.__file__)
"""
    done = run(wheel, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(wheel))


def test_the_suite_for_a_neuron_of_another_project(wheel: Path, tmp_path: Path) -> None:
    """``lmht-theorems`` and plain pytest, with a pytest configuration of the other project that must not matter to the command."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    chosen = ["--statement", "Lemma A.1", "--statement", "Eqs. 5-6"]
    done = run(wheel, tmp_path, "-m", "theorems", "mine:mine", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "about the neuron (mine)" in done.stdout
    assert "integrate_and_fire not provided" in done.stdout
    others = {"__pycache__", ".benchmarks", ".hypothesis"}  # Python's, pytest-benchmark's and Hypothesis's caches
    assert {path.name for path in tmp_path.iterdir()} - others == {"mine.py", "pytest.ini"}
    (tmp_path / "pytest.ini").unlink()
    plain = [
        "-m",
        "pytest",
        "-p",
        "theorems.plugin",
        "--pyargs",
        "theorems",
        "-p",
        "no:cacheprovider",
        "--impl",
        "mine:mine",
    ]
    done = run(wheel, tmp_path, *plain, "--statement", "Lemma A.1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "about the neuron (mine)" in done.stdout
