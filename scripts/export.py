"""Exports a trained network to one file, in the folder of the run.

python scripts/export.py runs/gbn                        # needs only JAX to run
python scripts/export.py runs/gbn --format html          # a page to draw on
python scripts/export.py runs/gbn --format safetensors   # other frameworks

If the run has several replicas, all of them are in the file.
"""

from pathlib import Path

from command_line import fail, flags, run

from jax_mnist import files
from jax_mnist.inference.export import FORMATS
from jax_mnist.inference.predict import load_network

_FORMAT = flags.DEFINE_enum("format", "jaxexport", [*FORMATS], "What to write.")
_OUT = flags.DEFINE_string("out", None, "File to write; the default is RUN/network.FORMAT.")


def main(arguments):
    if len(arguments) != 1:
        fail("name the folder of one run")
    try:
        network = load_network(arguments[0])
    except ValueError as error:
        fail(error)
    out = Path(_OUT.value or Path(arguments[0]) / f"network.{_FORMAT.value}")
    data = FORMATS[_FORMAT.value](network)
    files.write_atomically(out, data)
    replicas = len(network.records)
    print(f"{out}: {replicas} {'replica' if replicas == 1 else 'replicas'}, {len(data):,} bytes")


if __name__ == "__main__":
    run(main)
