"""The arguments and the output that the benchmarks share."""

import argparse
import csv
import sys


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
    """Prints dicts with the same keys as CSV, floats with four digits."""
    writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{x:.4g}" if isinstance(x, float) else x for key, x in row.items()})
