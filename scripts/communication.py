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
from jax_mnist.training import mesh as devices
from jax_mnist.training import step as training
from jax_mnist.training.recipe import make_recipe

DEVICES = 8
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def collectives(norm, mesh_text, batch_size):
    """Returns number and bytes of the collective operations in a step of one replica."""
    settings = config.base()
    settings.update(norm=norm, mesh=mesh_text, batch_size=batch_size)
    mesh = devices.make_mesh(settings, DEVICES)
    recipe, hyper = make_recipe(settings, 60_000, mesh=mesh)
    replicas = devices.size(mesh, devices.REPLICA)
    hyper, state = training.init_replicas(recipe, [hyper] * replicas, range(replicas))
    images = np.zeros((batch_size, 28, 28, 1), np.uint8)
    data = devices.put(mesh, datasets.Dataset(images, np.zeros(batch_size, np.int32)))
    order = np.zeros((replicas, 2, batch_size), np.int32)
    text = training.train_epoch.lower(recipe, hyper, state, data, order).compile().as_text()
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
    print("| norm | mesh | collective operations a step | bytes a step |")
    print("| --- | --- | --- | --- |")
    for norm, mesh, batch_size in (
        ("ghost", f"replica={DEVICES}", 128),
        ("ghost", f"data={DEVICES}", 32 * DEVICES),
        ("batch", f"data={DEVICES}", 32 * DEVICES),
    ):
        number, size = collectives(norm, mesh, batch_size)
        print(f"| {norm} | {mesh} | {number} | {size:,} |", flush=True)


if __name__ == "__main__":
    main()
