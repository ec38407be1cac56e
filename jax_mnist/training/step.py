"""Training as pure functions: `state, data -> state, metrics`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jax_mnist.data.datasets import Dataset
from jax_mnist.nn.cnn import CNN
from jax_mnist.nn.operations import PLAIN
from jax_mnist.nn.xla import COMPILER_OPTIONS, separate
from jax_mnist.training import augment, optim
from jax_mnist.training import mesh as devices


@flax.struct.dataclass
class Hyperparameters:
    """What one compiled step takes as values: variants that differ in these share a program.

    Attributes:
      learning_rate: the schedule's peak.
      l1: see `optim.make_optimizer`.
      l2: see `optim.make_optimizer`.
      momentum: see `optim.make_optimizer`.
      ema: decay of the weight average per step (used where `Recipe.average` is set).
      strengths: of the augmentation.
    """

    learning_rate: ArrayLike
    l1: ArrayLike = 0.0
    l2: ArrayLike = 0.0
    momentum: ArrayLike = 0.9
    ema: ArrayLike = 0.0
    strengths: augment.Strengths = augment.Strengths()


class Recipe(NamedTuple):
    """What shapes the compiled step: static, hashable.

    Attributes:
      model: the network.
      schedule: name of a schedule in `optim.SCHEDULES`.
      steps: steps of the whole run.
      nesterov: whether momentum is Nesterov's.
      average: whether an exponential moving average of the weights is kept, and evaluated.
      normalization: of the images.
      mesh: see `devices.make_mesh`. If it spreads the batch, so must norms over the axis `data`.
    """

    model: CNN
    schedule: str
    steps: int
    nesterov: bool = False
    average: bool = False
    normalization: augment.Normalization = augment.MNIST
    mesh: Mesh | None = None


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes.

    Attributes:
      step: steps taken so far, int32 scalar.
      key: the run's key; each step derives its own from it, so a run can go on from any step.
      params: the network's parameters.
      batch_stats: the norms' running statistics.
      opt_state: the optimiser's state.
      average: `optax.EmaState` of the parameters and running statistics, or None.
    """

    step: Array
    key: Array
    params: optax.Params
    batch_stats: optax.Params
    opt_state: optax.OptState
    average: optax.EmaState | None


class StepMetrics(NamedTuple):
    """Of one training step: mean loss and accuracy on the augmented batch, learning rate."""

    loss: Array
    accuracy: Array
    learning_rate: Array


class Evaluation(NamedTuple):
    """Of a data set: mean loss, accuracy in [0, 1], and probabilities, float32 `[n, classes]`."""

    loss: float
    accuracy: float
    probabilities: np.ndarray


def _optimizer(recipe: Recipe, hyper: Hyperparameters) -> optax.GradientTransformation:
    schedule = optim.make_schedule(recipe.schedule, hyper.learning_rate, recipe.steps)
    return optim.make_optimizer(schedule, hyper.l1, hyper.l2, hyper.momentum, recipe.nesterov)


@functools.partial(jax.jit, static_argnames="recipe")
def init(recipe: Recipe, hyper: Hyperparameters, seed: ArrayLike) -> TrainState:
    """The state before the first step; everything random in the run follows from `seed`."""
    init_key, key = jax.random.split(jax.random.key(seed))
    network = recipe.model.clone(operations=PLAIN)  # quicker to trace, and the same parameters
    variables = network.init(init_key, jnp.zeros((1, 28, 28, 1)), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        key=key,
        params=params,
        batch_stats=batch_stats,
        opt_state=_optimizer(recipe, hyper).init(params),
        average=optax.ema(hyper.ema).init((params, batch_stats)) if recipe.average else None,
    )


def init_replicas(
    recipe: Recipe, hypers: Sequence[Hyperparameters], seeds: Sequence[int]
) -> tuple[Hyperparameters, TrainState]:
    """`init` for several replicas.

    Returns:
      The hyper-parameters and the states, each leaf with a leading axis of replicas.
    """
    hyper = jax.tree.map(lambda *values: np.array(values, np.float32), *hypers)
    hyper, seeds = devices.put(recipe.mesh, (hyper, np.array(seeds)), devices.REPLICA)
    return hyper, jax.vmap(functools.partial(init, recipe))(hyper, seeds)


def epoch_order(key: Array, epoch: int, examples: int, batch_size: int) -> Array:
    """The order in which an epoch visits the examples.

    A fresh permutation every epoch, each example at most once. What is left when the batch size
    does not divide the examples is dropped (as in Flax's examples): every batch has the same
    size, and it is other examples each epoch.

    Returns:
      int32 `[examples // batch_size, batch_size]`, indices of examples.
    """
    order = jax.random.permutation(jax.random.fold_in(jax.random.split(key)[0], epoch), examples)
    steps = examples // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def _train_step(
    recipe: Recipe, hyper: Hyperparameters, state: TrainState, data: Dataset, index: ArrayLike
) -> tuple[TrainState, StepMetrics]:
    """One step on the examples `index` of `data`.

    Args:
      recipe: static.
      hyper: values.
      state: before the step.
      data: uint8 images `[n, 28, 28, 1]` and int32 labels `[n]`, on the device.
      index: int32 `[batch]`.

    Returns:
      The state after the step, and the step's metrics (scalars).
    """
    index = jnp.asarray(index)
    shards = devices.size(recipe.mesh, devices.DATA)
    key = jax.random.fold_in(jax.random.split(state.key)[1], state.step)
    keys = jax.random.split(key, shards * len(index))
    if shards > 1:
        first = len(index) * jax.lax.axis_index(devices.DATA)
        keys = jax.lax.dynamic_slice_in_dim(keys, first, len(index))
    images = augment.augment_batch(
        keys, jnp.asarray(data.images)[index], hyper.strengths, recipe.normalization
    )
    labels = jnp.asarray(data.labels)[index]

    def loss_of(params: optax.Params) -> tuple[Array, tuple[Array, optax.Params]]:
        logits, updated = recipe.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits, updated.get("batch_stats", {}))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    accuracy = (logits.argmax(-1) == labels).mean()
    if shards > 1:
        grads, loss, accuracy = jax.lax.pmean((grads, loss, accuracy), devices.DATA)
    updates, opt_state = _optimizer(recipe, hyper).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        _, average = optax.ema(hyper.ema).update((params, batch_stats), average)
    metrics = StepMetrics(
        loss,
        accuracy,
        optim.make_schedule(recipe.schedule, hyper.learning_rate, recipe.steps)(state.step),
    )
    return (
        TrainState(state.step + 1, state.key, params, batch_stats, opt_state, average),
        metrics,
    )


train_step = jax.jit(_train_step, static_argnames="recipe", compiler_options=COMPILER_OPTIONS)


def _over_replicas(function: Callable[..., Any]) -> Callable[..., Any]:
    """Maps over a leading axis of every argument: together, but on a CPU one after another.

    A CPU gains nothing from wider arrays, which leave its caches.
    """

    def mapped(*args: Any) -> Any:
        if jax.default_backend() == "cpu":
            return jax.lax.map(lambda args: function(*args), args)
        return jax.vmap(function)(*args)

    return mapped


@functools.partial(jax.jit, static_argnames="recipe", compiler_options=COMPILER_OPTIONS)
def train_epoch(
    recipe: Recipe, hyper: Hyperparameters, state: TrainState, data: Dataset, order: ArrayLike
) -> tuple[TrainState, StepMetrics]:
    """An epoch or a part of one, of several replicas, in one program.

    Args:
      recipe: static.
      hyper: values, each with a leading axis of replicas.
      state: before the first step, with a leading axis of replicas; see `init_replicas`.
      data: on the device, common to all replicas.
      order: int32 `[replicas, steps, batch]`, of each replica from `epoch_order`.

    Returns:
      The states after the last step, and the metrics `[replicas, steps]`.
    """
    # A computation of its own, so that a replica's rounding is the same in every program.
    step = separate(functools.partial(_train_step, recipe))

    def train_replicas(
        hyper: Hyperparameters, state: TrainState, data: Dataset, order: Array
    ) -> tuple[TrainState, StepMetrics]:
        def train_one(
            hyper: Hyperparameters, state: TrainState, order: Array
        ) -> tuple[TrainState, StepMetrics]:
            return jax.lax.scan(lambda state, index: step(hyper, state, data, index), state, order)

        return _over_replicas(train_one)(hyper, state, order)

    replica, batch = P(devices.REPLICA), P(devices.REPLICA, None, devices.DATA)
    specs = (replica, replica, P(), batch)
    train = devices.spread(recipe.mesh, train_replicas, specs, replica)
    result: tuple[TrainState, StepMetrics] = train(hyper, state, data, jnp.asarray(order))
    return result


def inference_variables(hyper: Hyperparameters, state: TrainState) -> dict[str, Any]:
    """The variables to evaluate or keep: the weight average where the state has one.

    Returns:
      `{"params": ..., "batch_stats": ...}` for `model.apply`.
    """
    params, batch_stats = state.params, state.batch_stats
    if state.average is not None:
        params, batch_stats = optax.tree.bias_correction(
            state.average.ema, hyper.ema, state.average.count
        )
    return {"params": params, "batch_stats": batch_stats}


@functools.partial(
    jax.jit,
    static_argnames=("model", "normalization", "mesh"),
    compiler_options=COMPILER_OPTIONS,
)
def predict(
    model: CNN,
    variables: dict[str, Any],
    images: Array,
    normalization: augment.Normalization = augment.MNIST,
    mesh: Mesh | None = None,
) -> Array:
    """Logits of images.

    Args:
      model: static.
      variables: `{"params": ..., "batch_stats": ...}` with a leading axis of replicas.
      images: uint8 `[batch, 28, 28, 1]`.
      normalization: static; that of the training.
      mesh: static; its axis `data` must divide the batch.

    Returns:
      float32 `[replicas, batch, 10]`.
    """

    @separate  # as in `train_epoch`
    def predict_one(variables: dict[str, Any], images: Array) -> Array:
        x = augment.normalize(images.astype(jnp.float32) / 255, *normalization)
        logits: Array = model.apply(variables, x, train=False)  # type: ignore[assignment]
        return logits

    def predict_replicas(variables: dict[str, Any], images: Array) -> Array:
        return _over_replicas(lambda variables: predict_one(variables, images))(variables)

    specs, out = (P(devices.REPLICA), P(devices.DATA)), P(devices.REPLICA, devices.DATA)
    result: Array = devices.spread(mesh, predict_replicas, specs, out)(variables, images)
    return result


def evaluate_replicas(
    model: CNN,
    variables: dict[str, Any],
    data: Dataset,
    batch_size: int = 200,
    normalization: augment.Normalization = augment.MNIST,
    mesh: Mesh | None = None,
) -> list[Evaluation]:
    """`evaluate` of each replica: `variables` have a leading axis of replicas.

    On a mesh `batch_size` is of each device along `data`.
    """
    examples, shards = len(data.labels), devices.size(mesh, devices.DATA)
    batches = []
    for start in range(0, examples, batch_size * shards):
        images = jnp.asarray(data.images[start : start + batch_size * shards])
        missing = -len(images) % shards
        images = jnp.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else images
        batches.append(predict(model, variables, images, normalization, mesh))
    labels = np.asarray(data.labels)
    logits = np.concatenate(devices.fetch(mesh, batches), axis=1)[:, :examples]
    return [
        Evaluation(
            loss=float(-log_probabilities[np.arange(examples), labels].mean()),
            accuracy=float((log_probabilities.argmax(-1) == labels).mean()),
            probabilities=np.exp(log_probabilities).astype(np.float32),
        )
        for log_probabilities in scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    ]


def evaluate(
    model: CNN,
    variables: dict[str, Any],
    data: Dataset,
    batch_size: int = 200,
    normalization: augment.Normalization = augment.MNIST,
) -> Evaluation:
    """Mean loss, accuracy and probabilities over all of `data`, in batches of `batch_size`."""
    variables = jax.tree.map(lambda v: v[None], variables)
    return evaluate_replicas(model, variables, data, batch_size, normalization)[0]
