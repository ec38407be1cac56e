"""`GhostBatchNorm` for `flax.nnx`, a drop-in for `flax.nnx.BatchNorm`."""

from typing import Any, Literal

import jax
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jax_mnist.nn import ghost_batch_norm as normalization


class GhostBatchNorm(nnx.BatchNorm):
    """Batch normalisation over small "ghost" batches cut from the batch.

    It is an `nnx.BatchNorm` of the same variables: `scale` and `bias` are `nnx.Param`, `mean` and
    `var` are `nnx.BatchStat`. It is switched by `model.train()`, `model.eval()`, `nnx.view` or
    `use_running_average`. In training it computes what `normalization.GhostBatchNorm` computes,
    whose docstring says it in full; in inference it is `nnx.BatchNorm`, at any batch size.

    `nnx.bridge.ToNNX(normalization.GhostBatchNorm(...))` works too, but needs an example input to
    be initialised and `mutable=["batch_stats"]` in every call, and `eval()` does not reach it.

    Example::

        >>> import jax
        >>> from flax import nnx
        >>> from jax_mnist.nn.nnx import GhostBatchNorm
        >>> norm = GhostBatchNorm(8, ghost_batch_size=16, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (64, 28, 28, 8))
        >>> y = norm(x)
        >>> y[:16].mean().round(3), y[:16].std().round(3)
        (Array(0., dtype=float32), Array(1., dtype=float32))
        >>> norm.eval()
        >>> y = norm(x[:1])
    """

    def __init__(
        self,
        num_features: int,
        *,
        ghost_batch_size: int = 32,
        stats_update: Literal["mean", "sequential"] = "mean",
        **arguments: Any,
    ) -> None:
        """Makes the variables.

        Args:
          num_features: size of the feature axis.
          ghost_batch_size: examples in a ghost batch, at least 1; the first axis is cut.
          stats_update: how a training step updates the running statistics, see
            `normalization.GhostBatchNorm`.
          **arguments: those of `nnx.BatchNorm`, `rngs` among them. With `axis_name` ghost batches
            stay on their device, and only the updates of the running statistics are averaged.
        """
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

        Args:
          x: the input, `[batch, ..., features]`, or with the features where `axis` says.
          use_running_average: if given, goes before the attribute.
          mask: boolean, broadcastable to `x`: which entries the statistics are computed from.

        Returns:
          An array of the shape of `x`.

        Raises:
          ValueError: see `normalization.GhostBatchNorm`; or the mode is given nowhere.
        """
        inference = self.use_running_average if use_running_average is None else use_running_average
        if inference is None or inference:
            return super().__call__(x, inference)
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        x, _, _, scale, bias = self.promote_dtype(
            (x, self.mean[...], self.var[...], scale, bias), dtype=self.dtype
        )
        pure = normalization.GhostBatchNorm(
            use_running_average=False,
            ghost_batch_size=self.ghost_batch_size,
            stats_update=self.stats_update,
            axis=self.axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            use_bias=self.use_bias,
            use_scale=self.use_scale,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            use_fast_variance=self.use_fast_variance,
        )
        parameters = {"scale": scale, "bias": bias}
        variables = {
            "params": {name: value for name, value in parameters.items() if value is not None},
            "batch_stats": {"mean": self.mean[...], "var": self.var[...]},
        }
        y, updates = pure.apply(variables, x, mask=mask, mutable=["batch_stats"])
        # As in nnx.BatchNorm: a variable that outlives the step must not keep its gradient's.
        updated = jax.lax.stop_gradient(updates["batch_stats"])
        self.mean[...], self.var[...] = updated["mean"], updated["var"]
        return y
