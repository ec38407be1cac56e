"""The training loop: from the runs that train together to the progress after every few steps.

Nothing here writes or reads a run's files, so that the loop can be tested without any.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jax_mnist import config as config_lib
from jax_mnist.config import ConfigError
from jax_mnist.data import datasets
from jax_mnist.data.datasets import Dataset
from jax_mnist.runs.folder import Run
from jax_mnist.runs.record import METRICS
from jax_mnist.training import augment
from jax_mnist.training import mesh as mesh_lib
from jax_mnist.training.evaluation import Evaluation, evaluate_replicas
from jax_mnist.training.recipe import Hyper, Recipe, make_recipe
from jax_mnist.training.state import TrainState, inference_variables, init_replicas
from jax_mnist.training.step import StepMetrics, epoch_orders, train_steps

# Of all replicas together: about a second, so that the progress bar moves, and that a stop is soon.
# That of a GPU is an estimate for an old one, a T4, from the bytes that a step moves: 1 to 3 ms a
# step of a replica. To a faster one, calls that are shorter cost a millisecond or two each.
MAX_STEPS_PER_CALL = {"cpu": 30, "gpu": 480}

EpochMetrics = dict[str, np.ndarray]  # the names of METRICS; each float64 [runs]


class Job(NamedTuple):
    """What stays the same during the training of runs that train together.

    Attributes:
      runs: The runs; they differ only in fields that replicas of one program may differ in.
      recipe: What the step is compiled for.
      hyper: The fields in which runs may differ, each with a leading axis of replicas. There may be
        more replicas than runs, to fill the mesh; the results of the spare ones are ignored.
      mesh: The devices, or None for one.
      train: The training examples, on the devices.
      validation: The validation examples, on the devices.
      label_names: The names of the classes.
      data_digests: SHA-256 of both splits, if they may have changed when the runs resume.
      epochs: Length of the training.
      steps_per_epoch: Steps in an epoch.
      chunk: Steps in a call of the compiled program.
    """

    runs: Sequence[Run]
    recipe: Recipe
    hyper: Hyper
    mesh: Mesh | None
    train: Dataset
    validation: Dataset
    label_names: Sequence[str]
    data_digests: list[str]
    epochs: int
    steps_per_epoch: int
    chunk: int


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of runs: what their checkpoints hold, beside the digests of the data.

    Attributes:
      state: The states, on the devices, with a leading axis of replicas.
      step: Steps taken.
      epochs: The metrics of each complete epoch.
      partial: The metrics of the steps of the epoch under way, or of the one that has just ended,
        each `[runs, steps]`.
      seconds: Time spent on the epoch under way by each run, `[runs]`.
    """

    state: TrainState
    step: int
    epochs: tuple[EpochMetrics, ...]
    partial: StepMetrics
    seconds: np.ndarray

    @property
    def active(self) -> np.ndarray:
        """Whether each run still has a finite loss, bool `[runs]`."""
        losses = [e[key] for e in self.epochs for key in ("train_loss", "validation_loss")]
        return np.isfinite(np.column_stack([self.partial.loss, *losses])).all(1)

    def epochs_of(self, number: int) -> list[dict[str, float]]:
        """The complete epochs of one run, up to the first whose loss is not finite."""
        epochs: list[dict[str, float]] = []
        for epoch in self.epochs:
            of_run = {key: float(epoch[key][number]) for key in METRICS}
            epochs.append(of_run)
            if not np.isfinite([of_run["train_loss"], of_run["validation_loss"]]).all():
                break
        return epochs


def build(runs: Sequence[Run]) -> tuple[Job, Progress]:
    """Prepares runs for training.

    Args:
      runs: A group from `trainer.groups_to_train`.

    Returns:
      The job, and the progress before the first step.

    Raises:
      ConfigError: The batch is larger than the training set, or it does not fit the devices.
      DatasetError: The data cannot be loaded.
    """
    config = runs[0].config
    mesh = mesh_lib.make_mesh(config, len(runs))

    # The data, and what is computed from them.
    train, validation = load_splits(config)
    examples = len(train.images)
    constants = _normalization(config, train)
    digests = []
    if config.dataset not in datasets.NAMES:
        splits = (config.train_split, train), (config.validation_split, validation)
        digests = [datasets.digest("", split, data) for split, data in splits]

    # The state of every replica: those of the runs, and spare ones that fill the mesh.
    spare = -len(runs) % mesh_lib.size(mesh, mesh_lib.REPLICA)
    configs = [run.config for run in (*runs, *[runs[-1]] * spare)]
    recipe = make_recipe(config, examples, constants, mesh, runs[0].overrides)
    values = [config_lib.split(of_replica)[1] for of_replica in configs]
    hyper, state = init_replicas(recipe, values, [of_replica.seed for of_replica in configs])

    # As many steps in a call as divide an epoch and take about a second.
    steps = examples // config.batch_size
    of_device = len(configs) // mesh_lib.size(mesh, mesh_lib.REPLICA)
    most = MAX_STEPS_PER_CALL["cpu" if jax.default_backend() == "cpu" else "gpu"] // of_device
    job = Job(
        runs=runs,
        recipe=recipe,
        hyper=hyper,
        mesh=mesh,
        train=mesh_lib.put(mesh, train),
        validation=mesh_lib.put(mesh, validation),
        label_names=datasets.label_names(config.dataset),
        data_digests=digests,
        epochs=config.epochs,
        steps_per_epoch=steps,
        chunk=mesh_lib.largest_divisor(steps, max(1, most)),
    )
    none = np.empty((3, len(runs), 0), np.float32)
    return job, Progress(state, 0, (), StepMetrics(*none), np.zeros(len(runs)))


def load_splits(config: ConfigDict) -> tuple[Dataset, Dataset]:
    """The training and the validation examples of a config.

    Raises:
      ConfigError: The batch is larger than the training set.
      DatasetError: The data cannot be loaded.
    """
    train, validation = (
        datasets.load(config.dataset, split, config.data_dir, config.source_dir)
        for split in (config.train_split, config.validation_split)
    )
    if len(train.images) < config.batch_size:
        raise ConfigError(
            f"config.batch_size must be at most the {len(train.images)} training examples of "
            f"{config.train_split!r}; got {config.batch_size}"
        )
    return train, validation


def _normalization(config: ConfigDict, train: Dataset) -> augment.Normalization:
    if config.dataset == "mnist":
        return augment.MNIST
    constants = augment.normalization_of(train.images)
    if constants.std == 0:
        raise datasets.DatasetError(
            f"all pixels of {config.train_split!r} of {config.dataset} have the same value: "
            "name other images"
        )
    return constants


def advance(job: Job, progress: Progress) -> Iterator[Progress]:
    """Trains, and yields the progress after every call of the compiled program.

    After the last call of an epoch the progress has that epoch's evaluation. Training ends after
    the last epoch, or as soon as no run has a finite loss. The state of a progress is donated to
    the next call: its arrays can be used only until the generator goes on.
    """
    mesh, steps = job.mesh, job.steps_per_epoch
    examples, batch_size = len(job.train.images), job.runs[0].config.batch_size
    orders = None
    while progress.step < job.epochs * steps and progress.active.any():
        start = time.perf_counter()
        epoch, first = divmod(progress.step, steps)
        if orders is None or first == 0:
            orders = epoch_orders(progress.state.key, epoch, examples, batch_size, mesh)
        order = jax.lax.dynamic_slice_in_dim(orders, first, job.chunk, axis=1)
        state, metrics = train_steps(job.recipe, job.hyper, progress.state, job.train, order)
        progress = _after_steps(progress, state, jax.device_get(metrics), starts=first == 0)
        ends = progress.step % steps == 0 or not progress.active.any()
        evaluations = evaluate(job, state) if ends else []
        seconds = progress.seconds + (time.perf_counter() - start) / len(job.runs)
        progress = dataclasses.replace(progress, seconds=seconds)
        if ends:
            progress = _after_epoch(progress, evaluations)
        yield progress


def evaluate(job: Job, state: TrainState) -> list[Evaluation]:
    """Evaluates each run on the validation examples; see `evaluate_replicas`."""
    variables = jax.vmap(inference_variables)(job.hyper, state)
    model, normalization = job.recipe.model, job.recipe.normalization
    evaluations = evaluate_replicas(
        model, variables, job.validation, normalization=normalization, mesh=job.mesh
    )
    return evaluations[: len(job.runs)]


def _after_steps(
    progress: Progress, state: TrainState, metrics: StepMetrics, starts: bool
) -> Progress:
    runs = len(progress.seconds)
    partial = StepMetrics(*(new[:runs] for new in metrics))
    if not starts:
        pairs = zip(progress.partial, partial, strict=True)
        partial = StepMetrics(*(np.concatenate(pair, axis=1) for pair in pairs))
    step = progress.step + metrics.loss.shape[1]
    return dataclasses.replace(progress, state=state, step=step, partial=partial)


def _after_epoch(progress: Progress, evaluations: Sequence[Evaluation]) -> Progress:
    loss, accuracy, rate = map(np.asarray, progress.partial)
    epoch = {
        "train_loss": loss.mean(1, dtype=np.float64),
        "train_accuracy": accuracy.mean(1, dtype=np.float64),
        "validation_loss": np.array([e.loss for e in evaluations]),
        "validation_accuracy": np.array([e.accuracy for e in evaluations]),
        "learning_rate": rate[:, -1].astype(np.float64),
        "seconds": progress.seconds,
    }
    return dataclasses.replace(
        progress,
        epochs=(*progress.epochs, epoch),
        seconds=np.zeros_like(progress.seconds),
    )
