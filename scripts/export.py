"""Exports a trained network to one file that needs only JAX to run.

python scripts/export.py runs/gbn --out gbn.jaxexport
"""

from pathlib import Path

from absl import flags
from command_line import fail, run

from jax_mnist.data import files
from jax_mnist.inference.export import serialize
from jax_mnist.inference.predict import load
from jax_mnist.training import augment

_OUT = flags.DEFINE_string("out", None, "File to write; the default is NAME_OF_THE_RUN.jaxexport.")


def main(arguments):
    if len(arguments) != 1:
        fail("name the folder of one run")
    try:
        network = load(arguments[0])
    except ValueError as error:
        fail(error)
    record = network.records[0]
    out = Path(_OUT.value or f"{record['name']}.jaxexport")
    normalization = augment.Normalization(**record["normalization"])
    data = serialize(network.model, network.variables, normalization)
    files.write_atomically(out, data)
    replicas = len(network.records)
    print(f"{out}: {replicas} {'replica' if replicas == 1 else 'replicas'}, {len(data):,} bytes")


if __name__ == "__main__":
    run(main)
