"""Loading the trained network of a finished run, and predicting with it."""

import jax
import numpy as np

from jax_mnist.runs.trained import TrainedNetwork, load_network
from jax_mnist.training import evaluation

__all__ = ["TrainedNetwork", "load_network", "predict"]


def predict(network: TrainedNetwork, images: np.ndarray) -> np.ndarray:
    """Computes class probabilities of images.

    Args:
      network: As returned by `load_network`.
      images: The images, uint8 `[batch, 28, 28]`, white digits (255) on black (0).

    Returns:
      float32 `[batch, 10]`, the mean of the replicas' probabilities.
    """
    logits = evaluation.predict(
        network.model, network.variables, images[..., None], network.normalization
    )
    return np.asarray(jax.nn.softmax(logits).mean(0))
