"""What the scripts have in common: flags, and errors in one line."""

import signal
import sys
from pathlib import Path

from absl import app, flags, logging

from jax_mnist.config import ConfigError
from jax_mnist.datasets import DatasetError
from jax_mnist.history import HistoryError
from jax_mnist.stopping import StoppedError


def fail(error):
    message = error.args[0] if isinstance(error, KeyError) else error
    print(f"{Path(sys.argv[0]).name}: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


def run(main):
    """Runs `main(arguments)`, the arguments being those that are no flags."""

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except Exception as error:  # what a config file raises is its own
            fail(error)

    def call(argv):
        logging.set_verbosity(logging.WARNING)
        try:
            main(argv[1:])
        except StoppedError as stop:
            print(f"{Path(sys.argv[0]).name}: {stop}", file=sys.stderr)
            sys.exit(128 + stop.signal)
        except KeyboardInterrupt:  # before there was anything to save
            print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except (ConfigError, DatasetError, HistoryError, OSError) as error:
            fail(error)

    app.run(call, flags_parser=parse)
