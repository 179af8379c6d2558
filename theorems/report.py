"""What the suite says: one line a statement, then the smallest failure of each; all from test reports, as xdist has no more."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings

from theorems.conventions import CLIP, SINGLE, SURROGATE
from theorems.statements import STATEMENTS

# fixture that a test takes -> whom it is about; a test that takes none of them is about the equations alone
SUBJECTS = {"loaded": "the neuron", "ours": "networks of this library", "": "the equations"}
NEURON, NETWORKS, EQUATIONS = SUBJECTS.values()
COLUMNS = ("statement", "precondition", "how checked", "verdict", "smallest counterexample outside the precondition")
SUMMARY = ("statement", "in words", "found", "counterexamples without", "the paper")
WIDTH, SOURCE, LINES = 236, 400, 24  # of a line of a failure, of a line of its reproduction, of all of it


def statement(name: str, *, precondition: str, how: str, verdict: str = "holds") -> list[str]:
    """The arguments of the marker, checked, as what travels with a test's report."""
    return [name, precondition, how, verdict]


def failure(nodeid: str, error: BaseException) -> dict[str, str]:
    """A failure as a block to read and as one line to quote, whatever its size was; the same on every run."""
    text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("reproduce:")]
    lines: list[str] = []
    for line in "\n".join([text, *notes[:1]]).splitlines():
        if line.startswith(("assert ", "  +")):  # what pytest explains after the message
            break
        lines.append(line)
    begins = ("reproduce:", "import torch;")
    start = next((i for i, line in enumerate(lines) if line.strip().startswith(begins)), len(lines))
    shown = [cut(line) for line in lines[:start] if line.strip()][:LINES]
    source = [line.strip() for line in lines[start:]]  # pytest indents all lines of a message but the first
    if source and source[0] != "reproduce:":
        source.insert(0, "reproduce:")
    size, pasteable = sum(map(len, lines)), bool(source) and max(map(len, source)) <= SOURCE
    if not pasteable:
        source = [f"reproduce: the same command with --tb=long -k {nodeid.rpartition('::')[2].partition('[')[0]}"]
    line = getattr(error, "line", "") or next((line for line in shown if line.strip()), type(error).__name__)
    told = 2 * hasattr(error, "line") or int(pasteable)  # currents and both trains, a reproduction, or neither
    block = "\n".join([*("  " + line for line in shown), *source])  # the source as it can be pasted
    return {"block": block, "line": cut(line), "size": str(size), "told": str(told)}


def cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 4] + " ..."


@dataclass
class Outcome:
    """One test."""

    outcome: str
    reason: str
    subject: str
    statements: list[list[str]]
    counterexamples: list[str] = field(default_factory=list)
    conventions: list[str] = field(default_factory=list)
    failure: dict[str, str] | None = None

    def named(self, name: str) -> bool:
        return any(name == statement[0] for statement in self.statements)


@dataclass
class Row:
    """One (statement, precondition) with everything that its tests said."""

    how: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    counterexamples: list[str] = field(default_factory=list)

    def add(self, how: str, verdict: str) -> None:
        for values, value in ((self.how, how), (self.verdicts, verdict)):
            if value not in values:
                values.append(value)

    @property
    def verdict(self) -> str:
        failed = [verdict for verdict in self.verdicts if verdict.startswith("FAILS")]
        return "; ".join(failed or sorted(self.verdicts))


class StatementReport:
    """Pytest plugin of the controlling process: gathers outcomes, prints the verdicts, writes ``--report``."""

    def __init__(self, name: str, path: str | None, verbose: bool = False, strict: bool = False) -> None:
        self.name, self.path, self.verbose, self.strict = name, path, verbose, strict
        self.outcomes: dict[str, Outcome] = {}
        self.only_conventions = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found: dict[str, list] = {}
        for key, value in report.user_properties:
            found.setdefault(str(key), []).append(value)
        if "statement" not in found or "subject" not in found or (report.passed and report.when != "call"):
            return
        reason = str(report.longrepr[2]).removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
        self.outcomes[report.nodeid] = Outcome(
            report.outcome,
            reason,
            str(found["subject"][0]),
            found["statement"],
            found.get("counterexample", []),
            found.get("convention", []),
            found.get("failure", [None])[0],
        )

    def of(self, name: str, subject: str | None = None) -> dict[str, Outcome]:
        """A statement's tests, by their names: the order does not depend on scheduling."""
        return {
            nodeid: outcome
            for nodeid, outcome in sorted(self.outcomes.items())
            if outcome.named(name) and subject in (None, outcome.subject)
        }

    @property
    def conventions(self) -> list[str]:
        return [line for _, outcome in sorted(self.outcomes.items()) for line in outcome.conventions]

    def verdict(self, name: str, subject: str) -> tuple[str, str]:
        """A word, and what there is to say about it."""
        tests = list(self.of(name, subject).values())
        failed = [test for test in tests if test.outcome == "failed"]
        passed = [test for test in tests if test.outcome == "passed"]
        left_out = [test for test in tests if test.outcome == "skipped"]
        skipped = sorted({test.reason for test in left_out})
        if name == "Conventions" and failed and all(test.conventions for test in failed):
            return "differs", "; ".join(line.partition(":")[0] for line in self.conventions)
        if failed:
            return ("differs" if self.explained(name) else "FAILS"), f"{len(failed)} of {len(tests)} tests fail"
        if not passed:
            return "not asked", "; ".join(skipped)
        proved = any(name == said[0] and "proved" in said[2] for test in passed for said in test.statements)
        passes = f"{len(passed)} test{'s' * (len(passed) > 1)}"
        if any(name == said[0] and "necessity" not in said[2] for test in left_out for said in test.statements):
            return "in part", f"{passes}; not asked: {'; '.join(skipped)}"
        return "proved" if proved else "holds", passes

    def explained(self, name: str) -> bool:
        """Whether a failure is what the neuron's conventions come to: the equations hold with them, the statement does not."""
        words = [name for name in STATEMENTS if name.startswith(("Contract", "Eq"))]
        failed = any(test.outcome == "failed" for word in words for test in self.of(word, NEURON).values())
        forward = [word for word in words if word.startswith(("Eqs. 1-2", "Eqs. 5-6", "Eq. 7"))]
        asked = any(test.outcome == "passed" for word in forward for test in self.of(word, NEURON).values())
        deciding = any(
            not line.startswith((SURROGATE, CLIP, SINGLE)) for line in self.conventions
        )  # which spikes there are
        return deciding and name not in words and asked and not failed

    def all_explained(self, failed: int) -> bool:
        """Whether so many failed tests are all of conventions, or of what these come to."""
        tests = [test for test in self.outcomes.values() if test.outcome == "failed"]
        differs = [self.verdict(said[0], test.subject)[0] == "differs" for test in tests for said in test.statements]
        return 0 < failed == len(tests) and all(differs)

    def smallest(self, name: str, subject: str) -> tuple[str, dict[str, str]]:
        """The failure to show of a statement, with a reproduction if one has it; conventions have a paragraph of their own."""
        tests = self.of(name, subject).items()
        failed = [(n, o.failure) for n, o in tests if o.outcome == "failed" and o.failure and not o.conventions]
        return min(failed, key=lambda pair: (-int(pair[1]["told"]), int(pair[1]["size"]), pair[0]), default=("", {}))

    # --- in the terminal

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    # in quotes: pytest 8.0 does not export the name
    def pytest_terminal_summary(self, terminalreporter: "pytest.TerminalReporter") -> Iterator[None]:
        """The verdicts instead of pytest's own lists of what failed and was skipped, unless ``--tb`` asks for those."""
        stats = terminalreporter.stats
        kept: dict[str, list] = {}
        if terminalreporter.config.option.tbstyle == "auto":
            kept = {key: stats.pop(key) for key in ("failed", "skipped") if key in stats}
            for key, reports in kept.items():
                if others := [report for report in reports if getattr(report, "nodeid", "") not in self.outcomes]:
                    stats[key] = others
        for line in self.terminal():
            terminalreporter.section(line[1:]) if line[:1] == "=" else terminalreporter.write_line(line)
        try:
            return (yield)
        finally:
            stats.update(kept)

    def terminal(self) -> Iterator[str]:
        """Lines; those that begin with ``=`` are headings."""
        for subject in SUBJECTS.values():
            names = [name for name in STATEMENTS if self.of(name, subject)]
            if names:
                yield f"=about {subject}" + (f" ({self.name})" if subject == NEURON else "")
            for name in names:
                word, why = self.verdict(name, subject)
                yield cut(f"{name:<24}{word:<12}{why}")
            if subject == NEURON and self.conventions:
                asked = "Every" if self.strict else "Eqs. 1-9 are asked with them, every other"
                yield f"Its conventions ({asked} statement{' is asked' * self.strict} as the paper has it):"
                yield from (f"  {line}" for line in self.conventions)
                if self.only_conventions:
                    yield "Nothing else fails: exit code 0. With --no-conventions it is 1."
            yield from self.failures(subject, names)
        if self.verbose:
            found = [(key[1:], text) for key, row in self.rows().items() for text in row.counterexamples]
            if found:
                yield "=counterexamples outside the preconditions"
            yield from (f"{name}, without [{precondition}]: {text}" for (name, precondition), text in found)

    def failures(self, subject: str, names: Sequence[str]) -> Iterator[str]:
        blocks: list[str] = []
        for name in names:
            nodeid, found = self.smallest(name, subject)
            if not found:
                continue
            if subject == NEURON and self.explained(name):
                yield f"  {name} does not hold with them: {found['line']}"
            else:
                blocks += [
                    f"{name}, {nodeid.rpartition('/')[2]}:",
                    *found["block"].splitlines(),
                    "",
                ]
        if blocks:
            yield "=the smallest failure of each statement"
            yield from blocks[:-1]

    # --- in a file

    def rows(self) -> dict[tuple[str, str, str], Row]:
        """Rows by subject, in the paper's order, then by the tests' names."""
        rows: dict[tuple[str, str, str], Row] = {}
        for nodeid, test in sorted(self.outcomes.items()):
            for name, precondition, how, verdict in test.statements:
                row = rows.setdefault((test.subject, name, precondition), Row())
                label = nodeid.rpartition("/")[2].partition("[")[0]
                row.add(
                    how,
                    {"passed": verdict, "failed": f"FAILS: {label}"}.get(test.outcome, f"not checked: {test.reason}"),
                )
                row.counterexamples += [c for c in test.counterexamples if c not in row.counterexamples]
        subjects, names = list(SUBJECTS.values()), list(STATEMENTS)
        return dict(sorted(rows.items(), key=lambda item: (subjects.index(item[0][0]), names.index(item[0][1]))))

    def summary(self, name: str) -> tuple[str, ...]:
        """A statement's line: what a reader grasps in a minute."""
        tests = self.of(name)
        verdicts = {subject: self.verdict(name, subject)[0] for subject in SUBJECTS.values() if self.of(name, subject)}
        tested = "; ".join(f"{subject}: {word}" for subject, word in verdicts.items())
        found = [c for _, row in self.rows_of(name) for c in row.counterexamples]
        texts = (text.partition(" dropped:" if " dropped:" in text else ":")[0].rstrip(",") for text in found)
        without = dict.fromkeys(texts)
        every = all(test.outcome == "passed" for test in tests.values())
        paper = STATEMENTS[name].paper
        return (
            name,
            STATEMENTS[name].words,
            tested,
            "; ".join(without),
            paper if every else paper and "not all asked",
        )

    def rows_of(self, name: str) -> list[tuple[tuple[str, str, str], Row]]:
        return [(key, row) for key, row in self.rows().items() if key[1] == name]

    def markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", "<br>") for cell in cells) + " |"

        def table(columns: Sequence[str]) -> list[str]:
            return ["", line(columns), line(["---" for _ in columns])]

        lines = [
            "# The paper's statements, checked",
            "",
            "Generated by `pytest theorems/ --report results/theorems.md`; do not edit by hand.",
            f"Implementation: {self.name}. Hypothesis profile: {settings.get_current_profile_name()}.",
            *table(SUMMARY),
            *(line(self.summary(name)) for name in STATEMENTS if self.of(name)),
        ]
        if self.conventions:
            lines += [
                "",
                f"Conventions of the neuron{'' if self.strict else ', with which Eqs. 1-9 are asked'}:",
                "",
                *(f"- {c}" for c in self.conventions),
            ]
        for subject in SUBJECTS.values():
            rows = {key[1:]: row for key, row in self.rows().items() if key[0] == subject}
            if rows:
                lines += ["", f"## About {subject}" + (f": {self.name}" if subject == NEURON else ""), *table(COLUMNS)]
            for (name, precondition), row in rows.items():
                found = "<br>".join(row.counterexamples) or ("none exists" if precondition == "none" else "")
                lines.append(line((name, precondition, "; ".join(row.how), row.verdict, found)))
        return "\n".join(lines) + "\n"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A convention is no failure: who runs the suite on every commit wants to hear of what is none."""
        whole = session.exitstatus == pytest.ExitCode.TESTS_FAILED and not session.shouldfail
        alone = bool(self.outcomes) and session.testscollected in (0, len(self.outcomes))
        skipped = all(outcome.outcome == "skipped" for outcome in self.outcomes.values())
        if session.exitstatus == pytest.ExitCode.OK and alone and skipped:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED  # nothing was asked
        if whole and not self.strict and self.all_explained(session.testsfailed):
            session.exitstatus, self.only_conventions = pytest.ExitCode.OK, True
        if self.path:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            Path(self.path).write_text(self.markdown(), encoding="utf-8")
