"""What several files of tests share."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with nothing in it. MLflow takes seconds to lay one out: once is enough."""
    from benchmarks.tracking import connect

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content as it lies in site-packages, with its commands in ``bin``."""
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
    (information,) = built.glob("*.dist-info")
    (built / "bin").mkdir()
    for command in PathDistribution(information).entry_points.select(group="console_scripts"):
        script = built / "bin" / command.name
        script.write_text(
            f"#!{sys.executable}\nimport sys\nfrom {command.module} import {command.attr}\nsys.exit({command.attr}())\n"
        )
        script.chmod(0o755)
    return built
