"""Names the digits in pictures, with a trained network.

python scripts/predict.py runs/gbn my_digit.png ...
python scripts/predict.py runs/gbn *.jpg --json

PNG or JPEG of any size, one digit each, dark on light or light on dark. A run of several replicas
answers with the mean of their probabilities.
"""

import json

import numpy as np
from absl import flags
from command_line import fail, run

from jax_mnist.inference import pictures
from jax_mnist.inference import predict as trained
from jax_mnist.runs import compiler

_JSON = flags.DEFINE_bool("json", False, "Print one JSON object per picture, a line each.")


def main(arguments):
    if len(arguments) < 2:
        fail("name the folder of a run, and pictures")
    compiler.configure()
    try:
        network = trained.load(arguments[0])
        images = [pictures.read(path) for path in arguments[1:]]
    except ValueError as error:
        fail(error)
    if network.records[0]["config"].get("dataset") == "emnist/digits":
        images = [image.T for image in images]  # as it holds them, see datasets.load
    names = network.records[0]["label_names"]
    width = max(map(len, arguments[1:]))
    if not _JSON.value:
        print(" ".join([" " * width, "label", *(f"{name:>6.6}" for name in names)]))
    for path, probabilities in zip(
        arguments[1:], trained.predict(network, np.stack(images)), strict=True
    ):
        label = names[probabilities.argmax()]
        if _JSON.value:
            chances = dict(zip(names, map(float, probabilities), strict=True))
            print(json.dumps({"picture": path, "label": label, "probabilities": chances}))
        else:
            shown = (f"{p:6.1%}" for p in probabilities)
            print(" ".join([f"{path:{width}}", f"{label:>5.5}", *shown]))


if __name__ == "__main__":
    run(main)
