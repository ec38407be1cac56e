"""The network: twelve bias-free convolutions, 8,546 parameters."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax


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


class CNN(nn.Module):
    """The network of `LAYERS`.

    Attributes:
      norm: constructor of the normalisation layers, for example
        `functools.partial(GhostBatchNorm, ghost_batch_size=32)`, `nn.LayerNorm`.

    Example::

        >>> import jax, jax.numpy as jnp
        >>> from jax_mnist.model import CNN
        >>> model, x = CNN(), jnp.zeros((2, 28, 28, 1))
        >>> variables = model.init(jax.random.key(0), x, train=False)
        >>> model.apply(variables, x, train=False).shape
        (2, 10)
    """

    norm: Callable[..., nn.Module] = functools.partial(nn.BatchNorm, momentum=0.9)

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Classifies images.

        Args:
          x: float `[batch, 28, 28, 1]`, normalised.
          train: whether batch statistics normalise (and update the running ones).

        Returns:
          Logits, `[batch, 10]`.
        """
        for number, layer in enumerate(LAYERS, start=1):
            x = nn.Conv(
                layer.features,
                (layer.size, layer.size),
                padding="VALID",
                use_bias=False,
                kernel_init=conv_init,
                conv_general_dilated=_convolve,
                name=f"conv{number}",
            )(x)
            for operation in layer.then:
                match operation:
                    case "ReLU":
                        x = nn.relu(x)
                    case "norm":
                        x = self._normalize(x, train, name=f"norm{number}")
                    case "max-pool 2x2":
                        x = nn.max_pool(x, (2, 2), strides=(2, 2))
                    case "average-pool 4x4":
                        x = nn.avg_pool(x, (4, 4))
        return x.reshape(len(x), -1)

    def _normalize(self, x: Array, train: bool, name: str) -> Array:
        norm = self.norm(name=name)
        if hasattr(norm, "use_running_average"):  # the batch norms; not LayerNorm or GroupNorm
            return norm(x, use_running_average=not train)
        return norm(x)


def layer_table(model: CNN, input_shape: tuple[int, ...] = (28, 28, 1)) -> str:
    """A table of the layers with output shapes and parameter counts, nothing being computed."""
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


def _convolve(x: Array, kernel: Array, *args: Any, **kwargs: Any) -> Array:
    """`lax.conv_general_dilated`, with what XLA's CPU backend does slowly written as products.

    One step of the whole network took 38 ms in place of 47 ms on two cores; GPU programs stay
    within noise of each other.
    """
    height, width, channels, features = kernel.shape
    if (height, width) == (1, 1):
        return x @ kernel[0, 0]
    if channels == 1:  # one product over the shifted copies of the image
        rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
        shifted = [x[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
        return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, features)
    return lax.conv_general_dilated(x, kernel, *args, **kwargs)
