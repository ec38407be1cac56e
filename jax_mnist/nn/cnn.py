"""The network: twelve bias-free convolutions, 8,546 parameters."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_mnist.nn import batch_last
from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm


class Layer(NamedTuple):
    """A convolution without padding or bias, and what follows it."""

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

TO_BATCH_LAST = (1, 3, 2, 0)  # from [batch, height, width, channels]
TO_BATCH_FIRST = (3, 0, 2, 1)


class Conv(nn.Module):
    """A convolution without padding or bias.

    Attributes:
      features: output channels.
      size: rows and columns of the kernel.
      batch_last: see `CNN`.
    """

    features: int
    size: int
    batch_last: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[batch, height, width, channels]`, or its batch-last order."""
        channels = x.shape[1 if self.batch_last else -1]
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", conv_init, shape)
        if self.batch_last:
            return batch_last.convolve(x, kernel)
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class CNN(nn.Module):
    """The network of `LAYERS`.

    Attributes:
      norm: constructor of the normalisation layers, for example
        `functools.partial(GhostBatchNorm, ghost_batch_size=32)`, `nn.LayerNorm`.
      batch_last: whether to compute with `batch_last`'s operations and order of axes, which are
        fast on a CPU. The default is to do so where the CPU is JAX's default backend. Parameters
        and results are the same.

    Example::

        >>> import jax, jax.numpy as jnp
        >>> from jax_mnist.nn.cnn import CNN
        >>> model, x = CNN(), jnp.zeros((2, 28, 28, 1))
        >>> variables = model.init(jax.random.key(0), x, train=False)
        >>> model.apply(variables, x, train=False).shape
        (2, 10)
    """

    norm: Callable[..., nn.Module] = functools.partial(nn.BatchNorm, momentum=0.9)
    batch_last: bool | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Classifies images.

        Args:
          x: float `[batch, 28, 28, 1]`, normalised.
          train: whether batch statistics normalise (and update the running ones).

        Returns:
          Logits, `[batch, 10]`.
        """
        last = jax.default_backend() == "cpu" if self.batch_last is None else self.batch_last
        if last:
            x = x.transpose(TO_BATCH_LAST)
        for number, layer in enumerate(LAYERS, start=1):
            x = Conv(layer.features, layer.size, last, name=f"conv{number}")(x)
            for operation in layer.then:
                match operation:
                    case "ReLU":
                        x = nn.relu(x)
                    case "norm":
                        x = self._normalize(x, train, last, name=f"norm{number}")
                    case "max-pool 2x2":
                        x = batch_last.max_pool(x) if last else nn.max_pool(x, (2, 2), (2, 2))
                    case "average-pool 4x4":
                        x = x.mean((0, 2) if last else (1, 2), keepdims=True)
        return x[0, :, 0].T if last else x[:, 0, 0]

    def _normalize(self, x: Array, train: bool, last: bool, name: str) -> Array:
        make = _batch_last_norm(self.norm) if last else None
        norm = (make or self.norm)(name=name)
        turned = last and make is None
        if turned:
            x = x.transpose(TO_BATCH_FIRST)
        # The batch norms have another mode in training; not LayerNorm or GroupNorm.
        modes = {"use_running_average": not train} if hasattr(norm, "use_running_average") else {}
        x = norm(x, **modes)
        return x.transpose(TO_BATCH_LAST) if turned else x


def _batch_last_norm(make: Callable[..., nn.Module]) -> Callable[..., nn.Module] | None:
    """The constructor of the same norm for the batch-last order of axes, if there is one."""
    norm = make(parent=None)
    if type(norm) is GhostBatchNorm:
        return functools.partial(make, axis=1, batch_axis=3)
    if type(norm) is not nn.BatchNorm:
        return None
    return functools.partial(make, axis=1)


def layer_table(model: CNN, input_shape: tuple[int, ...] = (28, 28, 1)) -> str:
    """A table of the layers with output shapes and parameter counts, nothing being computed."""
    model = model.clone(batch_last=False)
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    variables, state = jax.eval_shape(
        lambda key, x: (
            v := model.init(key, x, train=False),
            model.apply(v, x, train=False, capture_intermediates=True)[1],
        ),
        jax.random.key(0),
        x,
    )
    params, outputs = variables["params"], state["intermediates"]

    def count(name: str) -> int:
        return parameter_count(params.get(name, {}))

    norm_name = type(model.norm()).__name__
    rows = [("", "layer", "output", "parameters", "then")]
    for number, layer in enumerate(LAYERS, start=1):
        norm = f"{norm_name} ({count(f'norm{number}')})"
        shape = outputs[f"conv{number}"]["__call__"][0].shape[1:]
        rows.append(
            (
                str(number),
                f"conv {layer.size}x{layer.size}",
                "x".join(map(str, shape)),
                f"{count(f'conv{number}'):,}",
                ", ".join(norm if step == "norm" else step for step in layer.then),
            )
        )
    lines = [
        f"{number:>2}  {name:8}  {shape:8}  {size:>10}  {then}".rstrip()
        for number, name, shape, size, then in rows
    ]
    return "\n".join([*lines, f"Parameters: {parameter_count(params):,}"])


def parameter_count(params: Any) -> int:
    """The number of numbers in a tree of arrays (or of their shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
