"""`GhostBatchNorm` for models of `flax.nnx`."""

from typing import Any, Literal

from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jax_mnist import normalization


class GhostBatchNorm(nnx.BatchNorm):
    """Ghost batch normalisation: an `nnx.BatchNorm` whose training cuts the batch.

    It is an `nnx.BatchNorm` in all else: its variables (`scale`, `bias`, `mean`, `var`), its
    arguments, and `model.train()` and `model.eval()` switch it too, so one can replace the other.
    What it computes is what `normalization.GhostBatchNorm` computes, and documents. (Through
    `nnx.bridge.ToNNX` that layer would need an example input, and not follow `train` and `eval`.)

    Example::

        >>> from flax import nnx
        >>> import jax
        >>> from jax_mnist.nnx import GhostBatchNorm
        >>> norm = GhostBatchNorm(6, ghost_batch_size=16, rngs=nnx.Rngs(0))
        >>> y = norm(jax.random.normal(jax.random.key(0), (64, 6)))
        >>> y[:16].mean().round(3), y[:16].std().round(3)
        (Array(0., dtype=float32), Array(1., dtype=float32))
        >>> norm.eval()
        >>> norm(jax.random.normal(jax.random.key(1), (1, 6))).shape
        (1, 6)

    Args:
      num_features: size of the feature axis.
      ghost_batch_size: examples in a ghost batch, at least 1.
      stats_update: see `normalization.GhostBatchNorm`.
      **options: those of `nnx.BatchNorm`, without `promote_dtype`; `rngs` must be given.

    Raises:
      TypeError: an option is unknown, or `rngs` is missing.
    """

    def __init__(
        self,
        num_features: int,
        *,
        ghost_batch_size: int = 32,
        stats_update: Literal["mean", "sequential"] = "mean",
        **options: Any,
    ) -> None:
        if "promote_dtype" in options:
            raise TypeError("GhostBatchNorm takes no promote_dtype: give dtype")
        super().__init__(num_features, **options)
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
          x: `[batch, ..., features]`, or features at `axis`.
          use_running_average: whether to normalise with the running statistics; by default what
            the constructor, `train()` or `eval()` said last.
          mask: see `normalization.GhostBatchNorm`.

        Returns:
          An array of the shape of `x`.

        Raises:
          ValueError: see `normalization.GhostBatchNorm`.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        layer = normalization.GhostBatchNorm(
            use_running_average=use_running_average,
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
        given = {"scale": self.scale, "bias": self.bias}
        variables = {
            "params": {name: p[...] for name, p in given.items() if p is not None},
            "batch_stats": {"mean": self.mean[...], "var": self.var[...]},
        }
        y, updates = layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
        if not use_running_average:
            self.mean[...] = updates["batch_stats"]["mean"]
            self.var[...] = updates["batch_stats"]["var"]
        return y
