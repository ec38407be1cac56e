"""Counts what devices communicate in a training step, as a Markdown table.

python scripts/communication.py

Reads the collective operations from the programs that XLA compiles for eight devices, which are
simulated on the CPU. A ring of n devices moves 2 (n - 1) / n * b bytes through each of them for an
operation on b bytes; for so few bytes, the cost is the latency of each operation.
"""

import argparse
import math
import re

import jax
import numpy as np

from jax_mnist import config
from jax_mnist.data import datasets
from jax_mnist.training import mesh as mesh_lib
from jax_mnist.training import recipe
from jax_mnist.training.state import init_replicas
from jax_mnist.training.step import train_steps

DEVICES = 8
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def collectives(norm, replica_devices, data_devices, batch_size):
    """Returns number and bytes of the collective operations in a step of one replica."""
    settings = config.base()
    settings.update(
        norm=norm,
        replica_devices=replica_devices,
        data_devices=data_devices,
        batch_size=batch_size,
    )
    mesh = mesh_lib.make_mesh(settings, DEVICES)
    made = recipe.make_recipe(settings, 60_000, mesh=mesh)
    hyper, state = init_replicas(
        made, [recipe.make_hyperparameters(settings)] * replica_devices, range(replica_devices)
    )
    images = np.zeros((batch_size, 28, 28, 1), np.uint8)
    data = mesh_lib.put(mesh, datasets.Dataset(images, np.zeros(batch_size, np.int32)))
    order = np.zeros((replica_devices, 2, batch_size), np.int32)
    text = train_steps.lower(made, hyper, state, data, order).compile().as_text()
    shapes = re.findall(rf"= (.+?) (?:{COLLECTIVES})(?:-start)?\(", text)
    sizes = [
        BYTES[kind] * math.prod(int(n) for n in sides.split(",") if n)
        for shape in shapes
        for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    ]
    return len(shapes), sum(sizes)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print("| norm | devices | collective operations | bytes |")
    print("| --- | --- | --- | --- |")
    for norm, shape, batch_size in (
        ("ghost", (DEVICES, 1), 128),
        ("ghost", (1, DEVICES), 32 * DEVICES),
        ("batch", (1, DEVICES), 32 * DEVICES),
    ):
        number, size = collectives(norm, *shape, batch_size)
        use = "replicas" if shape[0] > 1 else "data"
        print(f"| {norm} | {DEVICES} for {use} | {number} | {size:,} |", flush=True)


if __name__ == "__main__":
    main()
