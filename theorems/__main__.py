"""``lmht-theorems MODULE:OBJECT`` (or ``python -m theorems``): the suite, for anyone's neuron, from any directory."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

USAGE = """usage: lmht-theorems MODULE:OBJECT [options of pytest]
       lmht-theorems --statements

Asks the object every statement of the paper: one line a statement, one failure a statement.
  --statement NAME   only this one; may be repeated
  --no-gradients     ask for no gradient
  --no-conventions   ask for the paper's conventions alone: a known one (hard reset, > instead of >=, ...) fails too
  --report FILE      write the verdicts as Markdown
  -n 4               on so many processes
  --tb=long          every failure as pytest prints it

Exit code 0: what was asked holds, or differs only by conventions, which are named; 1: something fails; 2: interrupted; 3: an error
of pytest; 4: wrong usage, or there is no such object; 5: nothing was asked."""


def main(arguments: list[str] | None = None) -> int:
    """Exit code as in ``USAGE``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0 if arguments else 2
    if missing := [name for name in ("pytest", "hypothesis", "xdist") if find_spec(name) is None]:
        print(f"lmht-theorems needs {', '.join(missing)}: pip install 'lmht[theorems]'", file=sys.stderr)
        return 2
    import pytest

    if not arguments[0].startswith("-"):
        arguments = ["--impl", *arguments]
    if not any(argument == "--statements" or argument.startswith("--impl") for argument in arguments):
        print(f"lmht-theorems: which neuron? MODULE:OBJECT comes first\n\n{USAGE}", file=sys.stderr)
        return 4
    # Nothing of the caller's own pytest configuration has a say.
    alone = ["-c", os.devnull, "--rootdir", os.getcwd(), "-p", "no:cacheprovider", "-p", "theorems.plugin", "-q"]
    return int(pytest.main([*alone, *arguments, str(Path(__file__).parent)]))


if __name__ == "__main__":
    sys.exit(main())
