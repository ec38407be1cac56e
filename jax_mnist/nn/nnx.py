"""`GhostBatchNorm` for `flax.nnx`, a drop-in for `flax.nnx.BatchNorm`."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import ArrayLike

from jax_mnist.nn.ghost_batch_norm import StatsUpdate, check_arguments, normalize_and_update


class GhostBatchNorm(nnx.BatchNorm):
    """Batch normalisation over small "ghost" batches.

    It is an `nnx.BatchNorm` with the same variables and arguments, and the options
    `ghost_batch_size` and `stats_update` of the linen layer, `ghost_batch_norm.GhostBatchNorm`.
    `model.train()`, `model.eval()`, `nnx.view` and `use_running_average` switch between training
    and inference, in which it takes a batch of any size. The first axis is cut.

    Example::

        >>> import jax
        >>> from flax import nnx
        >>> from jax_mnist.nn.nnx import GhostBatchNorm
        >>> norm = GhostBatchNorm(8, ghost_batch_size=16, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (64, 28, 28, 8))
        >>> y = norm(x)
        >>> abs(y[:16].mean()).round(3), y[:16].std().round(3)
        (Array(0., dtype=float32), Array(1., dtype=float32))
        >>> norm.eval()
        >>> y = norm(x[:1])
    """

    def __init__(
        self,
        num_features: int,
        *,
        ghost_batch_size: int = 32,
        stats_update: StatsUpdate = "mean",
        **arguments: Any,
    ) -> None:
        """Makes the variables, given the arguments of `nnx.BatchNorm`, including `rngs`.

        Raises:
          TypeError: `use_running_average` is neither None nor a boolean.
          ValueError: `ghost_batch_size` is not an integer of at least 1, or `stats_update` unknown.
        """
        check_arguments(arguments.get("use_running_average"), ghost_batch_size, stats_update)
        super().__init__(num_features, **arguments)
        self.ghost_batch_size = ghost_batch_size
        self.stats_update = stats_update

    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> Array:
        """Normalises `x`; in training also updates `mean` and `var`.

        The arguments and errors are those of the linen layer, except that `use_running_average`
        takes precedence over the attribute of this name.
        """
        check_arguments(use_running_average, self.ghost_batch_size, self.stats_update)
        x = jnp.asarray(x)
        inference = self.use_running_average if use_running_average is None else use_running_average
        if inference is None or inference:
            return super().__call__(x, inference)
        running = self.mean[...], self.var[...]
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        if hasattr(self, "promote_dtype"):  # Flax 0.11 promotes only the result
            x, _, _, scale, bias = self.promote_dtype((x, *running, scale, bias), dtype=self.dtype)
        devices = {"axis_name": self.axis_name, "axis_index_groups": self.axis_index_groups}
        y, updated = normalize_and_update(self, x, running, scale, bias, mask, devices)
        # As in nnx.BatchNorm: a variable outlives the step, so it must not carry its gradient.
        self.mean[...], self.var[...] = lax.stop_gradient(updated)
        return y
