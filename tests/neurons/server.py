"""Runs ``pytest`` command lines in forked copies of a process that has imported torch: one line of JSON in, one out.

The command line is the user's own; only the seconds that imports take are saved.
"""

import importlib
import json
import os
import resource
import sys
import tempfile

import pytest

# what takes the seconds, imported before the fork; the last one by a first backward()
for module in ("hypothesis", "torch", "lmht", "torch.fx.experimental.symbolic_shapes"):
    importlib.import_module(module)


def processor_seconds() -> float:
    """Of all children that have ended: a busy machine doesn't make a neuron slow."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(arguments: list[str]) -> dict[str, object]:
    before = processor_seconds()
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
        return {"code": code, "seconds": processor_seconds() - before, "output": output.read().decode()}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
