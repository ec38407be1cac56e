"""Runs scripts as a user would, without importing JAX anew for each command line."""

import json
import subprocess
import sys
from pathlib import Path

# Imports the libraries once. Each request on standard input is then a process forked from here.
# JAX's devices are not initialised before the fork, so that each process has its own.
_PARENT = """
import json, os, runpy, sys, tempfile, traceback
import jax_mnist.analysis.report, jax_mnist.inference.predict
for line in sys.stdin:
    script, *arguments, folder = json.loads(line)
    with tempfile.TemporaryFile("r+") as out, tempfile.TemporaryFile("r+") as errors:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            os.chdir(folder)
            sys.path.insert(0, os.path.dirname(script))
            sys.argv = [script, *arguments]
            code = 0
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        errors.seek(0)
        print(json.dumps([code, out.read(), errors.read()]), flush=True)
"""


class ForkedScripts:
    """A context manager whose `run` takes what a command line would say.

    Example::

        with ForkedScripts() as scripts:
            result = scripts.run("scripts/plot.py", "--out=figures", cwd=tmp_path)
    """

    def __enter__(self):
        self._parent = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _PARENT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_):
        self._parent.stdin.close()
        self._parent.stdout.close()
        self._parent.wait()

    def run(self, script, *arguments, cwd):
        """Returns a `subprocess.CompletedProcess` with text."""
        command = [str(Path(script).resolve()), *map(str, arguments)]
        print(json.dumps([*command, str(cwd)]), file=self._parent.stdin, flush=True)
        return subprocess.CompletedProcess(command, *json.loads(self._parent.stdout.readline()))
