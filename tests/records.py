"""History records made by hand, to test how records are kept and drawn: they claim no result."""

import numpy as np


def make_record(
    name="gbn",
    seed=0,
    accuracies=(0.9, 0.98, 0.99),
    losses=None,
    examples=40,
    mistakes=6,
    label_names=tuple("0123456789"),
):
    """Returns a valid record of `examples` images, of which `mistakes` spread ones are wrong.

    Labels go round the classes; a wrong prediction is the class after next. Image k of the
    mistakes is filled with k. The j-th example gives its prediction probability 0.5 + j / 1024.
    """
    epochs = len(accuracies)
    label = (np.arange(examples) % 10).astype(np.int32)
    index = np.linspace(0, examples - 1, mistakes).round().astype(np.int32)
    prediction = label.copy()
    prediction[index] = (label[index] + 2) % 10
    probabilities = np.zeros((examples, 10), np.float32)
    probabilities[np.arange(examples), prediction] = (0.5 + np.arange(examples) / 1024) % 1
    ramp = np.linspace(1.0, 0.1, epochs)
    return {
        "schema": 4,
        "name": name,
        "config": {
            "name": name,
            "epochs": epochs,
            "model": {"norm": "gbn", "momentum": 0.9, "bias": False, "width": None},
            "milestones": [10, 20],
            "scale": [1e-3, 2],
        },
        "seed": seed,
        "parameters": 8546,
        "metrics": {
            "train_loss": ramp,
            "train_accuracy": np.array(accuracies, np.float64) * 0.99,
            "validation_loss": ramp / 2 if losses is None else np.array(losses, np.float64),
            "validation_accuracy": np.array(accuracies, np.float64),
            "learning_rate": ramp / 10,
            "seconds": np.full(epochs, 12.5),
        },
        "normalization": {"mean": 0.1307, "std": 0.3081},
        "predictions": {"label": label, "prediction": prediction, "probabilities": probabilities},
        "mistakes": {
            "index": index,
            "images": np.tile(np.arange(mistakes, dtype=np.uint8)[:, None, None], (1, 28, 28)),
        },
        "label_names": list(label_names),
        "packages": {"python": "3.11.7", "jax": "0.10.2"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
        "variables_sha256": "",
    }


def of_variants(accuracies):
    """Returns records from a dict of name to final accuracies, one for each seed."""
    return [
        make_record(name, seed, accuracies=(0.9, value))
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def diverged(name, seed, epochs=1):
    """Returns a record of a run that diverged in its last epoch."""
    record = make_record(name, seed, accuracies=(0.9,) * (epochs - 1) + (0.098,))
    record["metrics"]["train_loss"][-1] = np.nan
    return record


def study(seeds=3, names=("bn", "l1", "l2", "gbn")):
    """Returns records of variants whose final accuracies grow from one to the next, with noise."""
    return [
        make_record(
            name, seed, accuracies=(0.9, 0.98, 0.985 + 0.001 * n + 1e-4 * (seed * (3 + n) % 7))
        )
        for n, name in enumerate(names)
        for seed in range(seeds)
    ]
