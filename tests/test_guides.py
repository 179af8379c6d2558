"""What README and guides show is so: every block of code is applied, run or checked, page by page, in fresh processes.

Python runs as it stands, ``lmht-theorems`` from the built wheel. Commands that take long are parsed by the program that they are
for, and what they name must exist. A block that nothing here knows fails.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OTHER_LIBRARIES = [re.split(r"\W", line)[0] for extra in ("interop", "nir", "neurobench") for line in EXTRAS[extra]] + [
    "nirtorch"
]
WITH_CODE = [page for page in PAGES if "```" in page.read_text()]

QUICK = (
    "list",
    "report",
    "import",
    "data",
)  # of `python -m benchmarks`: run as they stand; on small profiles plan and run, too
COMMANDS = """
import json, sys
from typer.main import get_command
from benchmarks import cli, spec

for run, words in json.loads(sys.argv[1]):
    if words[:2] == ["mlflow", "ui"]:
        from mlflow.cli import cli as mlflow
        mlflow.get_command(None, "ui").make_context("ui", words[2:])
    elif run:
        assert not cli.app(words, standalone_mode=False), words
    else:
        given = get_command(cli.app).commands[words[0]].make_context(words[0], words[1:]).params
        tables = [*(given.get("tables") or ())]
        if tables != ["latency"]:
            cli.selection(tables, given.get("rows"))
        spec.load_profile(given["profile"])
"""


class Block(NamedTuple):
    """A block of code; ``file`` and ``after`` if its first line says where it goes."""

    language: str
    text: str
    file: str = ""
    after: str = ""


def blocks(text: str) -> Iterator[Block]:
    for language, code in re.findall(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE):
        first, _, rest = code.partition("\n")
        place = re.fullmatch(r"# ([\w/]+\.\w+)(?:, (?:after: (.*)|at the end))?", first)
        yield (
            Block(language, rest, place[1], (place[2] or "") if "," in first else "new")
            if place
            else Block(language, code)
        )


def put(block: Block, tree: Path) -> None:
    """The block where its first line says."""
    path = tree / block.file
    if block.after == "new":
        assert not path.exists(), f"{block.file} is there already"
        path.write_text(block.text)
        return
    lines = path.read_text().splitlines(keepends=True)
    at = next((i for i, line in enumerate(lines) if line.strip().startswith(block.after)), None)
    assert at is not None, f"{block.file} has no line {block.after!r}"
    lines.insert(at + 1 if block.after else len(lines), block.text)
    path.write_text("".join(lines))


def commands(text: str) -> Iterator[list[str] | str]:
    """The commands of a block, as words; one with a document in it as it stands."""
    while text:
        line, _, text = text.partition("\n")
        if here := re.search(r"<<'(\w+)'$", line):
            document, _, text = text.partition(f"\n{here[1]}\n")
            yield f"{line}\n{document}\n{here[1]}\n"
        else:
            words = shlex.split(line, comments=True)
            for joined, some in groupby(words, "&&".__eq__):
                if not joined:
                    yield list(some)


def checked(words: list[str]) -> bool:
    """Whether it is a command whose names can be looked up, and they are there."""
    match words:
        case ["pip", "install", *what]:
            named = re.findall(r"\[([\w,]+)\]", " ".join(what))
            files = [what[i + 1] for i, word in enumerate(what) if word == "-c"]
            return {*",".join(named).split(",")} - {""} <= {*EXTRAS} and all((ROOT / file).exists() for file in files)
        case ["tox", "run"]:  # what tox.ini lists
            return True
        case ["tox", "run", "-e", environment, *_]:
            return environment in tox_environments()
        case ["tox", "run", "-m", label]:
            return any(
                line.startswith("labels") and label in line for line in (ROOT / "tox.ini").read_text().split("\n")
            )
        case ["pre-commit", "install"]:
            return (ROOT / ".pre-commit-config.yaml").exists()
    return False


def tox_environments() -> set[str]:
    headings = re.findall(r"^\[testenv:(.*)\]$", (ROOT / "tox.ini").read_text(), re.MULTILINE)
    return {name for heading in headings for name in heading.strip("{}").split(",")}


class Page:
    """A page's blocks on their way through: in a folder that is a copy of the repository if files of it are changed.

    What a page does not need, the wheel or a store, its environment needn't be able to make.
    """

    def __init__(self, folder: Path, request: pytest.FixtureRequest, changes: bool) -> None:
        self.folder, self.request, self.source = folder, request, ROOT
        self.variables: dict[str, str] = {}
        if changes:
            self.source = folder
            for name in ("benchmarks", "lmht"):
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))

    @property
    def wheel(self) -> Path:
        return self.request.getfixturevalue("wheel")

    def process(self, *words: str, path: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(path), "PATH": f"{path / 'bin'}:{os.environ['PATH']}"}
        environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.folder}/m.db"
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def python(self, texts: list[str], installed: bool) -> None:
        self.process(sys.executable, "-c", "\n".join(texts), path=self.wheel if installed else self.source)

    def launched(self, words: list[str]) -> list[str]:
        """What a launcher that is not here (torchrun, srun, sbatch) is to give to ``-m benchmarks``."""
        line = re.sub(r"\$(\w+)", lambda name: self.variables[name[1]], " ".join(words))
        _, _, inner = line.partition(" -m benchmarks ")
        return [word for word in shlex.split(inner) if word != "..."]

    def shell(self, text: str) -> None:
        harness = []
        for words in commands(text):
            if isinstance(words, str):
                self.process("sh", "-c", words, path=self.wheel)
            elif words[0] == "lmht-theorems":  # one statement of all, for the time that it takes
                self.process(*words, "--statement", "Lemma A.1", path=self.wheel)
            elif words[:3] == ["python", "-m", "benchmarks"]:
                harness.append((words[3] in QUICK or self.source != ROOT, words[3:]))
            elif words[:2] == ["mlflow", "ui"]:
                harness.append((False, words))
            elif given := re.fullmatch(r"(?:export )?(\w+)=(.*)", " ".join(words)):
                self.variables[given[1]] = given[2]
            elif inner := self.launched(words):
                harness.append((False, inner))
            else:
                assert checked(words), f"neither run nor checked, or names what is not there: {shlex.join(words)}"
        if harness:
            shutil.copy(self.request.getfixturevalue("empty_database"), self.folder / "m.db")
            self.process(sys.executable, "-c", COMMANDS, json.dumps(harness), path=self.source)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_every_block_of_a_page_is_run_or_checked(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = list(blocks(page.read_text()))
    assert len(found) == len(re.findall(r"^```", page.read_text(), re.MULTILINE)) / 2
    python = "\n".join(block.text for block in found if block.language == "python")
    for name in OTHER_LIBRARIES:
        if re.search(rf"^(import|from) {name}\b", python, re.MULTILINE) and not find_spec(name):
            pytest.skip(f"{name} is not installed; run tox -e interop")
    place = Page(tmp_path, request, changes=any(block.file for block in found))
    for (language, placed), some in groupby(found, lambda block: (block.language, bool(block.file))):
        for block in (group := list(some)):
            if placed:
                put(block, tmp_path)
            elif language == "sh":
                place.shell(block.text)
            else:
                assert language == "python", f"neither run nor checked: a block of {language or 'no language'}"
        if language == "python" and not placed:
            place.python([block.text for block in group], installed=page.name == "README.md")


@pytest.mark.parametrize("text", ["make all", "tox run -e no-such", "pip install '.[nothing]'"])
def test_a_command_that_is_not_there_is_found(text: str) -> None:
    (words,) = commands(text)
    assert isinstance(words, list)
    assert not checked(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_files_that_a_page_links_to_are_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
