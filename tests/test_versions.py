"""The torch environments of tox.ini test the version that they name."""

import configparser
import importlib.util
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("torch_version", ROOT / ".ci" / "torch_version.py")
assert _spec is not None
assert _spec.loader is not None
torch_version = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(torch_version)


def version_environments() -> dict[str, configparser.SectionProxy]:
    """Every environment of tox.ini with a torch version in its name or torch's label, generative sections ({a,b}) expanded."""
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(ROOT / "tox.ini")
    found = {}
    for section in ini.sections():
        choices = [part.split(",") for part in re.split(r"[{}]", section.removeprefix("testenv:"))]
        # outside the braces (even places) the text is one choice, commas and all
        choices = [[",".join(c)] if i % 2 == 0 else c for i, c in enumerate(choices)]
        for name in map("".join, itertools.product(*choices)):
            if re.search(r"torch\d", name) or "torch" in ini[section].get("labels", ""):
                found[name] = ini[section]
    return found


def test_each_version_environment_checks_its_torch_first():
    environments = version_environments()
    assert {torch_version.expected(name)[0] for name in environments} == {"2.6", "2.9", "2.11", "2.13", "2.14", "2.15"}
    for name, section in environments.items():
        first = section["commands"].split("\n")[1]
        assert first == "python .ci/torch_version.py {env_name}", f"{name} does not check its torch version first"
        torch, _ = torch_version.expected(name)
        factor = name.partition("-")[0]
        pin = "lowest: UV_RESOLUTION = lowest-direct" if name == "lowest" else f"{factor}: torch=={torch}.*"
        assert pin in section["deps"].split("\n") + section["set_env"].split("\n"), f"{name} does not pin torch {torch}"
        # a package or extras step would be a second resolution, free to replace torch
        assert section["package"] == "skip", name
        assert not section["extras"], name


def test_each_python_has_a_version_environment():
    assert {torch_version.expected(name)[1] for name in version_environments()} == {"3.11", "3.12", "3.13"}


def test_lowest_is_the_lowest_that_the_project_allows():
    assert torch_version.expected("lowest") == ("2.6", "3.11")


@pytest.mark.parametrize(("torch", "python"), [("2.15.0", "3.12.1"), ("2.1.1", "3.12.1"), ("2.11.0", "3.11.7")])
def test_another_version_fails(torch, python):
    with pytest.raises(SystemExit, match=r"torch211-py312 needs .* is installed"):
        torch_version.check("torch211-py312", torch, python)


def test_the_named_version_passes():
    torch_version.check("torch211-py312", "2.11.0+cpu", "3.12.1")
    with pytest.raises(SystemExit, match="names no torch"):
        torch_version.check("torch-py312", "2.11.0", "3.12.1")
