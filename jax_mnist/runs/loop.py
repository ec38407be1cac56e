"""The training loop: from the runs that train together to the progress after every few steps.

Nothing here writes or reads a run's files, so that the loop can be tested without any.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jax_mnist.config import ConfigError
from jax_mnist.data import datasets
from jax_mnist.data.datasets import Dataset
from jax_mnist.runs import history, trained
from jax_mnist.runs.run import Run
from jax_mnist.runs.trained import TrainedNetwork
from jax_mnist.training import augment, recipe
from jax_mnist.training import mesh as mesh_lib
from jax_mnist.training.evaluation import Evaluation, evaluate_replicas
from jax_mnist.training.recipe import Hyperparameters, Recipe
from jax_mnist.training.state import TrainState, inference_variables, init_replicas
from jax_mnist.training.step import StepMetrics, epoch_orders, train_steps

# Of all replicas together: about a second, so that the progress bar moves, and that a stop is soon.
# That of a GPU is an estimate from the bytes that a step moves.
MAX_STEPS_PER_CALL = {"cpu": 30, "gpu": 9600}

EpochMetrics = dict[str, np.ndarray]  # the names of history.METRICS; each float64 [runs]


class Program(NamedTuple):
    """What stays the same during the training of runs that train together.

    Attributes:
      runs: The runs; they differ only in fields that replicas of one program may differ in.
      recipe: What the step is compiled for.
      hyper: The hyper-parameters, each with a leading axis of replicas. There may be more replicas
        than runs, to fill the mesh; the results of the spare ones are ignored.
      teacher: The variables of the teachers, on the devices, or None; see `objective.gradient`.
      mesh: The devices, or None for one.
      train: The training examples, on the devices.
      validation: The validation examples, on the devices.
      label_names: The names of the classes.
      data_digests: SHA-256 of both splits, if they may have changed when the runs resume, and of
        the teachers' variables.
      epochs: Length of the training.
      steps_per_epoch: Steps in an epoch.
      chunk: Steps in a call of the compiled program.
    """

    runs: Sequence[Run]
    recipe: Recipe
    hyper: Hyperparameters
    teacher: Any
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
    """The progress of runs: exactly what their checkpoints hold.

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
        found: list[dict[str, float]] = []
        for epoch in self.epochs:
            found.append({key: float(epoch[key][number]) for key in history.METRICS})
            if not np.isfinite([found[-1]["train_loss"], found[-1]["validation_loss"]]).all():
                break
        return found


def build(runs: Sequence[Run]) -> tuple[Program, Progress]:
    """Prepares runs for training.

    Args:
      runs: A group from `run.group_by_program`.

    Returns:
      The program, and the progress before the first step.

    Raises:
      ConfigError: The batch is larger than the training set, or it does not fit the devices.
      DatasetError: The data cannot be loaded.
      HistoryError: The teachers cannot be loaded.
      ValueError: Likewise.
    """
    config = runs[0].config
    mesh = mesh_lib.make_mesh(config, len(runs))
    train, validation = load(config)
    digests = []
    if config.dataset not in datasets.NAMES:
        digests = [
            datasets.digest("", split, data)
            for split, data in (
                (config.train_split, train),
                (config.validation_split, validation),
            )
        ]
    examples = len(train.images)
    constants = _normalization(config, train)
    made = recipe.make_recipe(config, examples, constants, mesh, runs[0].parts)
    variables = None
    if "distillation" in made.uses:
        teachers = _teachers(config, constants)
        made, variables = made._replace(teacher=teachers.model), teachers.variables
        digests += [record["variables_sha256"] for record in teachers.records]
    spare = -len(runs) % mesh_lib.size(mesh, mesh_lib.REPLICA)
    configs = [run.config for run in (*runs, *[runs[-1]] * spare)]
    hyper, state = init_replicas(
        made, [*map(recipe.make_hyperparameters, configs)], [config.seed for config in configs]
    )
    steps = examples // config.batch_size
    program = Program(
        runs=runs,
        recipe=made,
        hyper=hyper,
        teacher=mesh_lib.put(mesh, variables),
        mesh=mesh,
        train=mesh_lib.put(mesh, train),
        validation=mesh_lib.put(mesh, validation),
        label_names=datasets.label_names(config.dataset),
        data_digests=digests,
        epochs=config.epochs,
        steps_per_epoch=steps,
        chunk=steps_per_call(steps, len(configs) // mesh_lib.size(mesh, mesh_lib.REPLICA)),
    )
    none = np.empty((3, len(runs), 0), np.float32)
    return program, Progress(state, 0, (), StepMetrics(*none), np.zeros(len(runs)))


def load_teachers(config: ConfigDict) -> TrainedNetwork:
    """Loads the finished runs that a run with distillation learns from.

    Raises:
      ConfigError: They were trained on another split.
      HistoryError: There are none, or they cannot be loaded.
    """
    found = trained.load(config.teacher)
    if (split := found.records[0]["config"]["train_split"]) != config.train_split:
        raise ConfigError(  # it might know the images that the student is validated on
            f"{config.teacher} was trained on {split}, and this run trains on "
            f"{config.train_split}: name a teacher of the same split"
        )
    return found


def _teachers(config: ConfigDict, normalization: augment.Normalization) -> TrainedNetwork:
    found = load_teachers(config)
    if found.records[0]["normalization"] != normalization._asdict():
        raise ConfigError(
            f"{config.teacher} was trained with other constants of normalisation: name another "
            "teacher, of the same data set"
        )
    return found


def load(config: ConfigDict) -> tuple[Dataset, Dataset]:
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
    found = augment.normalization_of(train.images)
    if found.std == 0:
        raise datasets.DatasetError(
            f"all pixels of {config.train_split!r} of {config.dataset} have the same value: "
            "name other images"
        )
    return found


def steps_per_call(steps: int, replicas: int = 1) -> int:
    """The number of steps in a call of `train_steps`: a divisor of the steps of an epoch."""
    backend = "cpu" if jax.default_backend() == "cpu" else "gpu"
    most = MAX_STEPS_PER_CALL[backend] // replicas
    return mesh_lib.largest_divisor(steps, max(1, most))


def training(program: Program, progress: Progress) -> Iterator[Progress]:
    """Trains, and yields the progress after every call of the compiled program.

    After the last call of an epoch the progress has that epoch's evaluation. Training ends after
    the last epoch, or as soon as no run has a finite loss. The state of a progress is donated to
    the next call: its arrays can be used only until the generator goes on.
    """
    mesh, steps = program.mesh, program.steps_per_epoch
    examples, batch_size = len(program.train.images), program.runs[0].config.batch_size
    orders = None
    while progress.step < program.epochs * steps and progress.active.any():
        start = time.perf_counter()
        epoch, first = divmod(progress.step, steps)
        if orders is None or first == 0:
            orders = epoch_orders(progress.state.key, epoch, examples, batch_size, mesh)
        order = jax.lax.dynamic_slice_in_dim(orders, first, program.chunk, axis=1)
        state, metrics = train_steps(
            program.recipe,
            program.hyper,
            progress.state,
            program.train,
            order,
            teacher=program.teacher,
        )
        progress = _after_steps(progress, state, mesh_lib.fetch(mesh, metrics), starts=first == 0)
        ends = progress.step % steps == 0 or not progress.active.any()
        evaluations = evaluate(program, state) if ends else []
        seconds = progress.seconds + (time.perf_counter() - start) / len(program.runs)
        progress = dataclasses.replace(progress, seconds=seconds)
        if ends:
            progress = _after_epoch(progress, evaluations)
        yield progress


def evaluate(program: Program, state: TrainState, probabilities: bool = False) -> list[Evaluation]:
    """Evaluates each run on the validation examples; see `evaluate_replicas`."""
    variables = jax.vmap(inference_variables)(program.hyper, state)
    evaluations = evaluate_replicas(
        program.recipe.model,
        variables,
        program.validation,
        probabilities=probabilities,
        normalization=program.recipe.normalization,
        mesh=program.mesh,
    )
    return evaluations[: len(program.runs)]


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
