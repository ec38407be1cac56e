"""Shared by the scripts: parsing flags, and reporting errors in one line."""

import os
import signal
import sys
from pathlib import Path

import jax
from absl import app, flags, logging

from jax_mnist.config import ConfigError, table
from jax_mnist.data.datasets import DatasetError
from jax_mnist.runs.history import HistoryError
from jax_mnist.runs.processes import LostProcessError
from jax_mnist.runs.signals import StoppedError


def fail(error):
    """Prints an error, which is a message or an exception, as one line and exits with code 2."""
    message = str(error.args[0] if isinstance(error, KeyError) else error)
    before, traceback, calls = message.partition("Traceback (most recent call last):")
    if traceback:  # ml_collections puts one into its message about a config file
        message = f"{before} {calls.strip().splitlines()[-1]}"
    printable = "".join(c if c.isprintable() else " " for c in message)
    leave(" ".join(printable.split()), 2)


def leave(message, code):
    """Prints a message after the script's name on standard error, and exits."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(code)  # a normal exit would wait for the other processes, which wait for this one
    sys.exit(code)


def run(main):
    """Parses the flags and calls `main` with the list of the other arguments.

    Exit codes: 2 for an error in the input, 1 if another process was lost, and 128 plus the number
    of the signal that stopped the script.
    """

    def parse(argv):
        try:
            arguments = flags.FLAGS(argv)
            if "config" in flags.FLAGS:
                hasattr(flags.FLAGS.config, "lock")  # raises if the file could not be loaded
            return arguments
        except Exception as error:  # a config file may raise anything
            fail(error)

    def call(argv):
        logging.set_verbosity(logging.WARNING)
        try:
            main(argv[1:])
        except StoppedError as stop:
            leave(stop, 128 + stop.signal)
        except KeyboardInterrupt:  # before there was anything to save
            leave("interrupted", 128 + signal.SIGINT)
        except LostProcessError as error:
            leave(error, 1)
        except (ConfigError, DatasetError, HistoryError, OSError) as error:
            fail(error)

    if "config" in flags.FLAGS:
        script = sys.modules["__main__"]
        script.__doc__ = f"{script.__doc__}\nFields, as in --config.FIELD=VALUE:\n\n{table()}\n"
    app.run(call, flags_parser=parse)
