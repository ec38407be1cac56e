"""What the scripts have in common: flags, and errors in one line."""

import os
import signal
import sys
from pathlib import Path

import jax
from absl import app, flags, logging

from jax_mnist.config import ConfigError
from jax_mnist.data.datasets import DatasetError
from jax_mnist.runs.history import HistoryError
from jax_mnist.runs.processes import LostProcessError
from jax_mnist.runs.signals import StoppedError


def fail(error):
    message = str(error.args[0] if isinstance(error, KeyError) else error)
    what, traceback, calls = message.partition("Traceback (most recent call last):")
    if traceback:  # what ml_collections says of a config file
        message = f"{what} {calls.strip().splitlines()[-1]}"
    printable = "".join(c if c.isprintable() else " " for c in message)
    leave(" ".join(printable.split()), 2)


def leave(message, code):
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(code)  # JAX would wait for the other processes, which end by missing this one
    sys.exit(code)


def run(main):
    """Runs `main(arguments)`, the arguments being those that are no flags."""

    def parse(argv):
        try:
            arguments = flags.FLAGS(argv)
            if "config" in flags.FLAGS:
                hasattr(flags.FLAGS.config, "lock")  # raises what kept the file from being loaded
            return arguments
        except Exception as error:  # what a config file raises is its own
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

    app.run(call, flags_parser=parse)
