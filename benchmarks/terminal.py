"""The arguments and the output that the benchmarks share."""

import argparse
import sys

import pandas as pd


def parser(description):
    """A parser whose errors are one line."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.error = lambda message: made.exit(2, f"{made.prog}: {message}\n")
    return made


def whole(least, most=1_000_000):
    """The type of an argument that is a whole number."""

    def number(text):
        if not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}; got {text}")
        return int(text)

    return number


def say(text):
    """Tells on standard error how far a benchmark is, since its table goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def print_csv(rows):
    """Prints a table or dicts with the same keys as CSV, floats with four digits."""
    print(pd.DataFrame(rows).to_csv(index=False, float_format="%.4g"), end="")
