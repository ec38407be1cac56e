"""Predicting with trained networks, and evaluating them."""

import functools
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_mnist.data.datasets import Dataset
from jax_mnist.nn.xla import jit
from jax_mnist.training.augment import MNIST, Normalization, normalize
from jax_mnist.training.mesh import DATA, REPLICA, over_replicas, size, spread


class Evaluation(NamedTuple):
    """Mean loss, accuracy in [0, 1], and probabilities, float32 `[n, classes]`, on a data set."""

    loss: float
    accuracy: float
    probabilities: np.ndarray


@functools.partial(jit, static_argnames=("model", "normalization", "mesh"))
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

    def predict_replicas(variables: dict[str, Any], images: Array) -> Any:
        return over_replicas(functools.partial(_logits, model, normalization, images))(variables)

    specs, out = (P(REPLICA), P(DATA)), P(REPLICA, DATA)
    result: Array = spread(mesh, predict_replicas, specs, out)(variables, images)
    return result


def _logits(
    model: nn.Module, normalization: Normalization, images: Array, variables: dict[str, Any]
) -> Array:
    x = normalize(images.astype(jnp.float32) / 255, *normalization)
    logits: Array = model.apply(variables, x, train=False)  # type: ignore[assignment]
    return logits


def evaluate_replicas(
    model: nn.Module,
    variables: dict[str, Any],
    data: Dataset,
    batch_size: int = 200,
    normalization: Normalization = MNIST,
    mesh: Mesh | None = None,
) -> list[Evaluation]:
    """Evaluates each replica in one call of a compiled program.

    Args:
      model: The network.
      variables: As in `predict`.
      data: The examples, best on the devices.
      batch_size: Examples that a replica evaluates at a time on each device along the axis `data`.
      normalization: The constants used in training.
      mesh: The devices.
    """
    sums = _evaluate(model, variables, data, batch_size, normalization, mesh)
    n = len(data.labels)
    return [
        Evaluation(
            loss=float(losses.sum(dtype=np.float64) / n),
            accuracy=float(correct.sum() / n),
            probabilities=shares.reshape(-1, shares.shape[-1])[:n],
        )
        for losses, correct, shares in zip(*jax.device_get(sums), strict=True)
    ]


@functools.partial(jit, static_argnames=("model", "batch_size", "normalization", "mesh"))
def _evaluate(
    model: nn.Module,
    variables: dict[str, Any],
    data: Dataset,
    batch_size: int,
    normalization: Normalization,
    mesh: Mesh | None,
) -> tuple[Array, Array, Array]:
    """Loss and number of correct predictions, `[replicas, batches]`, and probabilities."""
    examples, shards = len(data.labels), size(mesh, DATA)
    batch_size = min(batch_size, -(-examples // shards))
    missing = -examples % (batch_size * shards)
    images = jnp.pad(jnp.asarray(data.images), [(0, missing), (0, 0), (0, 0), (0, 0)])
    labels = jnp.pad(jnp.asarray(data.labels), [(0, missing)], constant_values=-1)
    batches = (a.reshape(-1, batch_size, *a.shape[1:]) for a in (images, labels))

    def evaluate_batch(
        variables: dict[str, Any], images: Array, labels: Array
    ) -> tuple[Array, Array, Array]:
        log_shares = jax.nn.log_softmax(_logits(model, normalization, images, variables))
        loss = -jnp.take_along_axis(log_shares, labels[:, None], axis=1)[:, 0]
        return (
            jnp.where(labels >= 0, loss, 0).sum(),
            (log_shares.argmax(-1) == labels).sum(),
            jnp.exp(log_shares),
        )

    def evaluate_share(variables: dict[str, Any], images: Array, labels: Array) -> Any:
        def evaluate_one(variables: dict[str, Any]) -> Any:
            return jax.lax.map(lambda batch: evaluate_batch(variables, *batch), (images, labels))

        return over_replicas(evaluate_one)(variables)

    specs = (P(REPLICA), P(DATA), P(DATA))
    result: tuple[Array, Array, Array] = spread(mesh, evaluate_share, specs, P(REPLICA, DATA))(
        variables, *batches
    )
    return result


def evaluate(
    model: nn.Module,
    variables: dict[str, Any],
    data: Dataset,
    batch_size: int = 200,
    normalization: Normalization = MNIST,
) -> Evaluation:
    """Evaluates one network on all of `data`, in batches of `batch_size`."""
    variables = jax.tree.map(lambda v: v[None], variables)
    (evaluation,) = evaluate_replicas(model, variables, data, batch_size, normalization)
    return evaluation
