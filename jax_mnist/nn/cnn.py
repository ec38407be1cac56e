"""The network: twelve convolutions without bias, 8,546 parameters."""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm
from jax_mnist.nn.operations import PLAIN, Operations, fastest, scale_channels


class Layer(NamedTuple):
    """A convolution without padding or bias, and what follows it.

    Attributes:
      size: Rows, and columns, of the kernel.
      features: Output channels.
      then: The operations that follow, in order.
    """

    size: int
    features: int
    then: tuple[str, ...]


RELU_NORM = ("ReLU", "norm")
NORM_RELU = ("norm", "ReLU")

LAYERS = (
    Layer(3, 10, RELU_NORM),
    Layer(3, 16, RELU_NORM),
    Layer(1, 10, (*NORM_RELU, "max-pool 2x2")),
    Layer(3, 10, RELU_NORM),
    Layer(1, 32, NORM_RELU),
    Layer(1, 10, RELU_NORM),
    Layer(3, 10, RELU_NORM),
    Layer(1, 32, NORM_RELU),
    Layer(1, 10, RELU_NORM),
    Layer(3, 14, RELU_NORM),
    Layer(3, 16, (*RELU_NORM, "average-pool 4x4")),
    Layer(1, 10, ()),
)


def widened(factor: int) -> tuple[Layer, ...]:
    """`LAYERS` with `factor` times as many features, but for the last layer's."""
    *hidden, last = LAYERS
    return (*(layer._replace(features=factor * layer.features) for layer in hidden), last)


# PyTorch's default for Conv2d, kaiming_uniform(a=sqrt(5)): uniform in ±1/sqrt(fan_in).
conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BatchNorm(GhostBatchNorm):
    """`flax.linen.BatchNorm`, computed as one ghost batch, so that it can tell its affine map."""

    ghost_batch_size: int = sys.maxsize


class Conv(nn.Module):
    """A convolution without padding or bias.

    Attributes:
      channels: Input channels.
      features: Output channels.
      size: Rows, and columns, of the kernel.
      operations: See `CNN`.
    """

    channels: int
    features: int
    size: int
    operations: Operations

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Convolves activations of the operations' kind."""
        shape = (self.size, self.size, self.channels, self.features)
        return self.operations.convolve(x, self.param("kernel", conv_init, shape))


class Dropout(NamedTuple):
    """Drops whole channels of single examples, and scales up the others to keep the mean.

    Attributes:
      keys: A key for each example, `[batch]`.
      rate: The probability of dropping a channel, a scalar in [0, 1).

    References:
      Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014;
      Tompson et al., "Efficient object localization using convolutional networks",
      arXiv:1411.4280, which drops whole channels.
    """

    keys: Array
    rate: ArrayLike

    def factors(self, channels: int) -> Array:
        """What each channel is multiplied by, `[batch, channels]`: 0 or `1 / (1 - rate)`."""
        keep = 1 - jnp.asarray(self.rate)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, (channels,)))(self.keys)
        return kept / keep


class CNN(nn.Module):
    """A network of convolutions, by default that of `LAYERS`.

    A model is a static argument of compiled functions, and two models with different `norm` objects
    are different arguments: for one compiled program, use one object (`functools.partial` does not
    compare by value).

    Attributes:
      norm: Makes a normalisation layer, as `norm(use_running_average=, axis=, batch_axis=, name=)`,
        where `axis` is the feature axis. For example
        `functools.partial(GhostBatchNorm, ghost_batch_size=32)`.
      operations: The operations to use; by default, the fastest on JAX's default backend. All
        use the same parameters, and give the same results except for rounding.
      layers: The layers. The last one must leave a height and width of 1, and its features are the
        classes.
      dropout_position: Whether dropout applies to the input of the layer after the max-pool, or of
        the last layer: `'max-pool'` or `'last'`.

    Example::

        >>> import jax, jax.numpy as jnp
        >>> from jax_mnist.nn.cnn import CNN
        >>> model, x = CNN(), jnp.zeros((2, 28, 28, 1))
        >>> variables = model.init(jax.random.key(0), x, train=False)
        >>> model.apply(variables, x, train=False).shape
        (2, 10)
    """

    norm: Callable[..., nn.Module] = functools.partial(BatchNorm, momentum=0.9)
    operations: Operations | None = None
    layers: tuple[Layer, ...] = LAYERS
    dropout_position: str = "last"

    @nn.compact
    def __call__(self, x: Array, train: bool, dropout: Dropout | None = None) -> Array:
        """Classifies images.

        Args:
          x: Normalised images, float `[batch, 28, 28, 1]`.
          train: Whether to normalise with the statistics of the batch, and to update the running
            ones, or to normalise with the running ones.
          dropout: Which channels to drop, if any.

        Returns:
          Logits, `[batch, classes]`.

        Raises:
          ValueError: A layer names an unknown operation.
        """
        operations = self.operations or fastest()
        if self.is_initializing():
            operations = PLAIN  # quicker to trace
        norm = functools.partial(
            self.norm,
            use_running_average=not train,
            axis=operations.feature_axis,
            batch_axis=operations.batch_axis,
        )
        channels, x = x.shape[3], operations.from_images(x)
        for number, layer in enumerate(self.layers, start=1):
            if dropout is not None and self._drops_input_of(number):
                x = scale_channels(operations, x, dropout.factors(channels))
            x = Conv(channels, layer.features, layer.size, operations, name=f"conv{number}")(x)
            channels = layer.features
            for step in layer.then:
                match step:
                    case "ReLU":
                        x = operations.relu(x)
                    case "norm":
                        x = operations.normalize(norm(name=f"norm{number}"), x)
                    case "max-pool 2x2":
                        x = operations.max_pool(x)
                    case "average-pool 4x4":
                        x = operations.average_pool(x)
                    case _:
                        raise ValueError(f"layer {number} has an unknown operation: {step!r}")
        return operations.to_logits(x)

    def _drops_input_of(self, number: int) -> bool:
        if self.dropout_position == "last":
            return number == len(self.layers)
        return number > 1 and "max-pool 2x2" in self.layers[number - 2].then


def layer_table(model: CNN) -> str:
    """A table of the layers with output shapes and parameter counts; nothing is computed."""

    def forward(key: Array, x: Array) -> Any:
        return plain.init_with_output(key, x, train=False, capture_intermediates=True)

    plain = model.clone(operations=PLAIN)
    images = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    _, variables = jax.eval_shape(forward, jax.random.key(0), images)
    params, outputs = variables["params"], variables["intermediates"]

    def count(name: str) -> int:
        return parameter_count(params.get(name, {}))

    norm = type(model.norm(use_running_average=True, axis=3, batch_axis=0, name=None)).__name__
    lines = [f"{'':2}  {'layer':8}  {'output':8}  {'parameters':>10}  then"]
    for number, layer in enumerate(model.layers, start=1):
        kernel = f"conv {layer.size}x{layer.size}"
        shape = "x".join(map(str, outputs[f"conv{number}"]["__call__"][0].shape[1:]))
        names = {"norm": f"{norm} ({count(f'norm{number}')})"}
        then = ", ".join(names.get(step, step) for step in layer.then)
        line = f"{number:>2}  {kernel:8}  {shape:8}  {count(f'conv{number}'):>10,}  {then}"
        lines.append(line.rstrip())
    return "\n".join([*lines, f"Parameters: {parameter_count(params):,}"])


def parameter_count(params: Any) -> int:
    """The number of elements in a tree of arrays, or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
