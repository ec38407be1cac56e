"""Writes a trained network to one file that needs nothing but JAX to run.

python scripts/export.py runs/gbn --out gbn.jaxexport
"""

from pathlib import Path

from absl import flags
from command_line import fail, run

from jax_mnist.data import files
from jax_mnist.inference import export
from jax_mnist.inference import predict as trained
from jax_mnist.training import augment

_OUT = flags.DEFINE_string("out", None, "The file (<name of the run>.jaxexport).")


def main(arguments):
    if len(arguments) != 1:
        fail("name the folder of one run")
    try:
        network = trained.load(arguments[0])
    except ValueError as error:
        fail(error)
    out = Path(_OUT.value or f"{network.records[0]['name']}.jaxexport")
    normalization = augment.Normalization(**network.records[0]["normalization"])
    data = export.serialize(network.model, network.variables, normalization)
    files.write_atomically(out, data)
    print(f"{out}: {len(network.records)} network(s), {len(data):,} bytes")


if __name__ == "__main__":
    run(main)
