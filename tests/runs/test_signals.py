"""A second Ctrl-C; `test_resuming` has that of a script."""

import subprocess
import sys

NOTEBOOK = """
import os, signal
from jax_mnist.runs.signals import stop_signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored in the background
with stop_signals() as received:
    os.kill(os.getpid(), signal.SIGINT)
    print(received)
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        print("lives on")
"""


def test_where_no_script_runs_a_second_interrupt_leaves_the_process_alive():
    process = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "[2]\nlives on\n"), process.stderr
