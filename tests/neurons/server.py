"""Runs ``pytest`` command lines in forked copies of a process that has imported torch: one line of JSON in, one out.

The command line is the user's own; only the seconds that imports take are saved.
"""

import importlib
import json
import os
import sys
import tempfile
import time

import pytest

# what takes the seconds, imported before the fork
for module in ("hypothesis", "torch", "lmht"):
    importlib.import_module(module)


def run(arguments: list[str]) -> dict[str, object]:
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            code = int(pytest.main(arguments))
            sys.stdout.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return {"code": code, "seconds": time.perf_counter() - start, "output": output.read().decode()}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
