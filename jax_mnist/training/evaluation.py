"""Predicting with trained networks, and evaluating them."""

import functools
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_mnist.data.datasets import Dataset
from jax_mnist.nn.xla import COMPILER_OPTIONS, separate
from jax_mnist.training.augment import MNIST, Normalization, normalize
from jax_mnist.training.mesh import DATA, REPLICA, fetch, size, spread
from jax_mnist.training.step import over_replicas


class Evaluation(NamedTuple):
    """Mean loss, accuracy in [0, 1], and probabilities, float32 `[n, classes]`, on a data set."""

    loss: float
    accuracy: float
    probabilities: np.ndarray


@functools.partial(
    jax.jit,
    static_argnames=("model", "normalization", "mesh"),
    compiler_options=COMPILER_OPTIONS,
)
def predict(
    model: nn.Module,
    variables: dict[str, Any],
    images: Array,
    normalization: Normalization = MNIST,
    mesh: Mesh | None = None,
) -> Array:
    """Computes the logits of images with every replica.

    Args:
      model: The network; static.
      variables: `{"params": ..., "batch_stats": ...}`, each leaf with a leading axis of replicas.
      images: The images, uint8 `[batch, 28, 28, 1]`.
      normalization: The constants used in training; static.
      mesh: The devices; static. The number along the axis `data` must divide the batch.

    Returns:
      float32 `[replicas, batch, 10]`.
    """
    chex.assert_shape(images, (None, 28, 28, 1))
    chex.assert_type(images, jnp.uint8)

    @separate  # as in `step.train_steps`
    def predict_one(variables: dict[str, Any], images: Array) -> Array:
        x = normalize(images.astype(jnp.float32) / 255, *normalization)
        logits: Array = model.apply(variables, x, train=False)  # type: ignore[assignment]
        return logits

    def predict_replicas(variables: dict[str, Any], images: Array) -> Array:
        return over_replicas(lambda variables: predict_one(variables, images))(variables)

    specs, out = (P(REPLICA), P(DATA)), P(REPLICA, DATA)
    result: Array = spread(mesh, predict_replicas, specs, out)(variables, images)
    return result


def evaluate_replicas(
    model: nn.Module,
    variables: dict[str, Any],
    data: Dataset,
    batch_size: int = 200,
    *,
    normalization: Normalization = MNIST,
    mesh: Mesh | None = None,
) -> list[Evaluation]:
    """Evaluates each replica: the leaves of `variables` have a leading axis of replicas.

    On a mesh, `batch_size` is per device along the axis `data`.
    """
    examples, shards = len(data.labels), size(mesh, DATA)
    batches = []
    for start in range(0, examples, batch_size * shards):
        images = jnp.asarray(data.images[start : start + batch_size * shards])
        missing = -len(images) % shards
        images = jnp.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else images
        batches.append(predict(model, variables, images, normalization, mesh))
    labels = np.asarray(data.labels)
    logits = np.concatenate(fetch(mesh, batches), axis=1)[:, :examples]
    return [
        Evaluation(
            loss=float(-log_probabilities[np.arange(examples), labels].mean()),
            accuracy=float((log_probabilities.argmax(-1) == labels).mean()),
            probabilities=np.exp(log_probabilities).astype(np.float32),
        )
        for log_probabilities in scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    ]


def evaluate(
    model: nn.Module,
    variables: dict[str, Any],
    data: Dataset,
    batch_size: int = 200,
    normalization: Normalization = MNIST,
) -> Evaluation:
    """Evaluates one network on all of `data`, in batches of `batch_size`."""
    variables = jax.tree.map(lambda v: v[None], variables)
    return evaluate_replicas(model, variables, data, batch_size, normalization=normalization)[0]
