"""Names the digits in pictures, using a trained network.

python scripts/predict.py runs/gbn my_digit.png another.jpg
python scripts/predict.py runs/gbn *.jpg --json

Each picture is a PNG or JPEG file of any size that shows one digit, dark on
light or light on dark. If the run has several seeds, their probabilities are
averaged.
"""

import json

import numpy as np
from command_line import fail, flags, run

from jax_mnist.inference import pictures
from jax_mnist.inference.predict import load_network, predict
from jax_mnist.runs import compiler

_JSON = flags.DEFINE_bool("json", False, "Print one JSON object per picture, one per line.")


def main(arguments):
    if len(arguments) < 2:
        fail("name the folder of a run, and one or more pictures")
    compiler.configure()
    folder, *paths = arguments
    try:
        network = load_network(folder)
        images = [pictures.read(path) for path in paths]
    except ValueError as error:
        fail(error)
    record = network.records[0]
    if network.transposed:
        images = [image.T for image in images]
    show = print_json if _JSON.value else print_table
    show(paths, record["label_names"], predict(network, np.stack(images)))


def print_json(paths, names, probabilities):
    for path, row in zip(paths, probabilities, strict=True):
        by_name = dict(zip(names, map(float, row), strict=True))
        answer = {"picture": path, "label": names[row.argmax()], "probabilities": by_name}
        print(json.dumps(answer))


def print_table(paths, names, probabilities):
    width = max(map(len, paths))
    print(" ".join([" " * width, "label", *(f"{name:>6.6}" for name in names)]))
    for path, row in zip(paths, probabilities, strict=True):
        cells = (f"{p:6.1%}" for p in row)
        print(" ".join([f"{path:{width}}", f"{names[row.argmax()]:>5.5}", *cells]))


if __name__ == "__main__":
    run(main)
