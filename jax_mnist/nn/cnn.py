"""The network: twelve convolutions without bias, 8,546 parameters."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jax_mnist.nn.affine import Affine, BatchNorm, GhostNorm, Moments
from jax_mnist.nn.kernels import PLAIN, Kernels, for_backend


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


# PyTorch's default for Conv2d, kaiming_uniform(a=sqrt(5)): uniform in ±1/sqrt(fan_in).
conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Kernel(nn.Module):
    """The weights of a convolution, `[size, size, channels, features]`."""

    size: int
    channels: int
    features: int

    @nn.compact
    def __call__(self) -> Array:
        """Returns the weights."""
        shape = (self.size, self.size, self.channels, self.features)
        weights: Array = self.param("kernel", conv_init, shape)
        return weights


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
        mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep, (channels,)))(self.keys)
        return mask / keep


class CNN(nn.Module):
    """A network of convolutions, by default that of `LAYERS`.

    A model is a static argument of compiled functions, and two models with different `norm` objects
    are different arguments: for one compiled program, use one object (`functools.partial` does not
    compare by value).

    Attributes:
      norm: Makes a normalisation layer, as `norm(use_running_average=, axis=, batch_axis=, name=)`,
        where `axis` is the feature axis. For example
        `functools.partial(GhostNorm, ghost_batch_size=32)`. The map of a `GhostNorm` (and so of a
        `BatchNorm`) is applied by the next layer; other norms, which may be any module, are applied
        to images, which takes longer on a CPU.
      kernels: What to compute with; by default, the fastest on JAX's default backend for float32
        images, and XLA's own convolutions for others. All use the same parameters, and give the
        same results except for rounding.
      layers: The layers. The last one must leave a height and width of 1, and its features are the
        classes.

    Example::

        >>> import jax, jax.numpy as jnp
        >>> from jax_mnist.nn.cnn import CNN
        >>> model, x = CNN(), jnp.zeros((2, 28, 28, 1))
        >>> variables = model.init(jax.random.key(0), x, train=False)
        >>> model.apply(variables, x, train=False).shape
        (2, 10)
    """

    norm: Callable[..., nn.Module] = functools.partial(BatchNorm, momentum=0.9)
    kernels: Kernels | None = None
    layers: tuple[Layer, ...] = LAYERS

    @nn.compact
    def __call__(self, x: Array, train: bool, dropout: Dropout | None = None) -> Array:
        """Classifies images.

        Args:
          x: Normalised images, float `[batch, 28, 28, 1]`.
          train: Whether to normalise with the statistics of the batch, and to update the running
            ones, or to normalise with the running ones.
          dropout: Which channels of the last layer's input to drop, if any.

        Returns:
          Logits, `[batch, classes]`.

        Raises:
          ValueError: A layer names an unknown operation.
        """
        # PLAIN is quicker to trace, and need not be compiled first.
        initializing = self.is_initializing()
        kernels = PLAIN if initializing else self.kernels or for_backend(x.dtype)
        norm = functools.partial(self.norm, use_running_average=not train, axis=3, batch_axis=0)
        channels, x = x.shape[3], kernels.from_images(x)
        affine: Affine | None = None  # what is still to be applied to x
        moments: Moments | None = None  # of x, where a convolution has just computed them

        def images() -> Array:
            """The activations, with nothing left to apply."""
            values = kernels.to_images(x)
            return values if affine is None else affine(values)

        for number, layer in enumerate(self.layers, start=1):
            if dropout is not None and number == len(self.layers):
                factors = dropout.factors(channels)
                affine = (affine or Affine.identity(factors)).scaled(factors)

            # The convolution, and a ReLU that follows it.
            kernel = Kernel(layer.size, channels, layer.features, name=f"conv{number}")()
            relu = layer.then[:1] == ("ReLU",)
            x, moments = kernels.convolve(x, kernel, affine, relu)
            affine, channels = None, layer.features

            for step in layer.then[relu:]:
                match step:
                    case "norm":
                        layer_norm = norm(name=f"norm{number}")
                        if isinstance(layer_norm, GhostNorm) and moments and affine is None:
                            affine = layer_norm.affine(moments)
                        else:
                            x, affine = kernels.from_images(layer_norm(images())), None
                            moments = None
                    case "ReLU" if affine is not None:
                        affine = affine._replace(relu=True)
                    case "ReLU":
                        x, moments = kernels.from_images(nn.relu(images())), None
                    case "max-pool 2x2":
                        x, affine, moments = kernels.max_pool(x, affine), None, None
                    case "average-pool 4x4" if moments and not (affine and affine.relu):
                        # The mean of an affine map is the map of the mean.
                        mean, _ = moments.means(False)
                        x, moments = kernels.from_images(mean[:, None, None]), None
                    case "average-pool 4x4":
                        mean = images().mean((1, 2), keepdims=True)
                        x, affine, moments = kernels.from_images(mean), None, None
                    case _:
                        raise ValueError(f"layer {number} has an unknown operation: {step!r}")
        return images()[:, 0, 0]


def output_sizes(layers: Sequence[Layer], side: int = 28) -> Iterator[tuple[int, int]]:
    """Yields the height (and width) of each layer's convolution, and of what follows it."""
    for layer in layers:
        convolved = side = side - layer.size + 1
        if "max-pool 2x2" in layer.then:
            side //= 2
        if "average-pool 4x4" in layer.then:
            side = 1
        yield convolved, side


def layer_table(model: CNN) -> str:
    """A table of the layers with output shapes and parameter counts; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    initialize = functools.partial(model.init, train=False)
    params = jax.eval_shape(initialize, jax.random.key(0), images)["params"]

    def count(name: str) -> int:
        return parameter_count(params.get(name, {}))

    norm = type(model.norm(use_running_average=True, axis=3, batch_axis=0, name=None)).__name__
    lines = [f"{'':2}  {'layer':8}  {'output':8}  {'parameters':>10}  then"]
    rows = zip(model.layers, output_sizes(model.layers), strict=True)
    for number, (layer, (side, _)) in enumerate(rows, start=1):
        kernel = f"conv {layer.size}x{layer.size}"
        shape = f"{side}x{side}x{layer.features}"
        names = {"norm": f"{norm} ({count(f'norm{number}')})"}
        then = ", ".join(names.get(step, step) for step in layer.then)
        line = f"{number:>2}  {kernel:8}  {shape:8}  {count(f'conv{number}'):>10,}  {then}"
        lines.append(line.rstrip())
    return "\n".join([*lines, f"Parameters: {parameter_count(params):,}"])


def parameter_count(params: Any) -> int:
    """The number of elements in a tree of arrays, or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
