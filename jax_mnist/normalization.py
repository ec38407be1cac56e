"""Ghost batch normalisation, a drop-in for `flax.linen.BatchNorm`."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike


class GhostBatchNorm(nn.Module):
    """Batch normalisation over small "ghost" batches cut from the batch.

    In training the batch is cut, along its first axis (or `batch_axis`), into ghost batches of
    `ghost_batch_size` examples, in order; where the size does not divide the batch, the last ghost
    batch is the shorter remainder. Each is normalised with its own mean and (biased) variance.
    Inference uses the running statistics, never cuts, and takes any batch size.

    Constructor arguments, parameters (`scale`, `bias`), the `batch_stats` collection (`mean`,
    `var`) and the behaviour of `mask` and `dtype` are those of `flax.linen.BatchNorm`: one can
    replace the other, and a checkpoint of one loads into the other. A batch of at most
    `ghost_batch_size` examples gives exactly what `flax.linen.BatchNorm` gives.

    Hoffer, Hubara and Soudry, "Train longer, generalize better" (arXiv:1705.08741), Algorithm 1;
    as a regulariser in Summers and Dinneen, "Four things everyone should know to improve batch
    normalization" (arXiv:1906.03548).

    With `s_1 … s_k` the statistics of the ghost batches, `n_1 … n_k` their sizes (the number of
    entries that `mask` keeps) and `m` the momentum, a training step updates a running statistic
    `r` by one of two rules:

    - `'mean'`: `r <- m r + (1 - m) sum_i n_i s_i / sum_i n_i`. One update a step, however many
      ghost batches there are, each weighted by its size.
    - `'sequential'`: `r <- m r + (1 - m) s_i` for `i = 1 … k` in order (Algorithm 1), computed as
      `m^k r + (1 - m) sum_i m^(k-i) s_i`. The momentum acts once per ghost batch, so the running
      statistics forget faster the more ghost batches there are.

    A ghost batch of which `mask` keeps nothing (padding) counts in neither rule.

    Example::

        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from jax_mnist.normalization import GhostBatchNorm
        >>> norm = GhostBatchNorm(ghost_batch_size=16)
        >>> x = jax.random.normal(jax.random.key(0), (64, 28, 28, 8))
        >>> variables = norm.init(jax.random.key(1), x, use_running_average=False)
        >>> y, updates = norm.apply(
        ...     variables, x, use_running_average=False, mutable=["batch_stats"])
        >>> y[:16].mean().round(3), y[:16].std().round(3)
        (Array(0., dtype=float32), Array(1., dtype=float32))

    Attributes:
      use_running_average: whether to normalise with the running statistics (inference) instead of
        the ghost batches' own (training). Given here or in the call, not in both.
      ghost_batch_size: examples in a ghost batch, at least 1.
      stats_update: how a training step updates the running statistics, `'mean'` or
        `'sequential'`.
      axis: the feature axis (or axes) of the input; not `batch_axis`.
      momentum: decay of the running statistics, `m` above.
      epsilon: added to the variance before its square root is taken.
      dtype: dtype of the result (default: inferred from the input and the parameters).
      param_dtype: dtype of the parameters.
      use_bias: whether a learned bias (beta) is added.
      use_scale: whether the result is multiplied by a learned scale (gamma).
      bias_init: initialiser of the bias.
      scale_init: initialiser of the scale.
      axis_name: name of the mapped axis (`jax.pmap`, `jax.shard_map`, `jax.vmap`) over which the
        batch is spread. Ghost batches stay on their device: the normalisation needs no
        communication, only the updates of the running statistics are averaged.
      axis_index_groups: groups of indices of that axis to average within (default: all).
      use_fast_variance: compute the variance as `E[x²] - E[x]²` in one pass over the input, rather
        than as `E[(x - E[x])²]` in two, which is more accurate.
      force_float32_reductions: compute and keep the statistics in at least float32.
      batch_axis: the axis of the input that is the batch.
    """

    use_running_average: bool | None = None
    ghost_batch_size: int = 32
    stats_update: Literal["mean", "sequential"] = "mean"
    axis: int | Sequence[int] = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    axis_name: str | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    batch_axis: int = 0

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> Array:
        """Normalises `x`; in training also updates the collection `batch_stats`.

        As in `flax.linen.BatchNorm`, initialisation leaves the running statistics at 0 and 1.

        Args:
          x: the input, `[batch, ..., features]`, or batch and features where `batch_axis` and
            `axis` say.
          use_running_average: see the attribute of this name.
          mask: boolean, broadcastable to `x`: which entries the statistics are computed from. All
            entries are normalised.

        Returns:
          An array of the shape of `x`.

        Raises:
          ValueError: `x` has fewer than two dimensions, `axis` names the batch's axis,
            `ghost_batch_size` is less than 1, or `stats_update` is neither of the two rules.
        """
        x = jnp.asarray(x)
        if self.ghost_batch_size < 1:
            raise ValueError(f"ghost_batch_size must be at least 1, got {self.ghost_batch_size}")
        if self.stats_update not in ("mean", "sequential"):
            raise ValueError(
                f"stats_update must be 'mean' or 'sequential', got {self.stats_update!r}"
            )
        axis = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)
        batch_axis, *feature_axes = (
            a % x.ndim if -x.ndim <= a < x.ndim else a for a in (self.batch_axis, *axis)
        )
        feature_axes.sort()
        axes = [batch_axis, *feature_axes]
        if x.ndim < 2 or len(set(axes)) < len(axes) or not all(0 <= a < x.ndim for a in axes):
            raise ValueError(
                "GhostBatchNorm needs an input of at least two dimensions and a feature axis other "
                f"than the batch's; got shape {x.shape}, axis={self.axis} and "
                f"batch_axis={self.batch_axis}"
            )
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        reduction_axes = tuple(i for i in range(x.ndim) if i not in feature_axes)
        features = [x.shape[a] for a in feature_axes]
        stats_dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, stats_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, features, stats_dtype)
        scale = (
            self.param("scale", self.scale_init, features, self.param_dtype)
            if self.use_scale
            else None
        )
        bias = (
            self.param("bias", self.bias_init, features, self.param_dtype)
            if self.use_bias
            else None
        )

        def normalize(x: Array, mean: Array, var: Array, axes: Sequence[int]) -> Array:
            """With statistics that broadcast to `x`; `axes` are those that are not features."""
            gamma, beta = (p if p is None else jnp.expand_dims(p, axes) for p in (scale, bias))
            return _normalize(x, mean, var, gamma, beta, self.epsilon, self.dtype)

        if use_running_average:
            mean, var = (
                jnp.expand_dims(r.value, reduction_axes) for r in (running_mean, running_var)
            )
            return normalize(x, mean, var, reduction_axes)

        moments = functools.partial(
            _moments,
            axes=reduction_axes,
            dtype=self.dtype,
            use_fast_variance=self.use_fast_variance,
            force_float32=self.force_float32_reductions,
        )
        if mask is not None:
            mask = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        # Of the ghost batches, [..., k, size, ...]: their axis, and the axes to reduce over.
        ghost_features = [a if a < batch_axis else a + 1 for a in feature_axes]
        ghost_axes = [a for a in range(x.ndim + 1) if a not in ghost_features]
        place = sorted([batch_axis, *ghost_features]).index(batch_axis)
        parts = []
        for (first, last), size in _cuts(x.shape[batch_axis], self.ghost_batch_size):
            part = lax.slice_in_dim(x, first, last, axis=batch_axis)
            ghosts, ghosts_mask = _split(part, size, batch_axis), None
            if mask is not None:
                part_mask = lax.slice_in_dim(mask, first, last, axis=batch_axis)
                ghosts_mask = _split(part_mask, size, batch_axis)
            statistics = jax.vmap(moments, in_axes=batch_axis)(ghosts, ghosts_mask)
            mean, var = (
                jnp.expand_dims(
                    jnp.moveaxis(s, 0, place), [a for a in ghost_axes if a != batch_axis]
                )
                for s in statistics[:2]
            )
            y = normalize(ghosts, mean, var, ghost_axes)
            parts.append((y.reshape(part.shape), statistics))
        y = jnp.concatenate([y for y, _ in parts], batch_axis)
        mean, var, count = (jnp.concatenate(s) for s in zip(*(s for _, s in parts), strict=True))
        if not self.is_initializing():
            running_mean.value, running_var.value = self._updated_statistics(
                (running_mean.value, running_var.value), (mean, var), count
            )
        return y

    def _updated_statistics(
        self, running: tuple[Array, Array], ghosts: tuple[Array, Array], count: Array
    ) -> tuple[Array, Array]:
        """The running mean and variance after a step; `ghosts` and `count` lead with an axis k."""
        if self.axis_name is None:
            psum = pmean = lambda tree: tree
        else:
            groups = {"axis_name": self.axis_name, "axis_index_groups": self.axis_index_groups}
            psum = functools.partial(lax.psum, **groups)
            pmean = functools.partial(lax.pmean, **groups)

        if self.stats_update == "mean":
            total = psum(count.sum(0))
            share = count / jnp.maximum(total, 1)
            average = psum(tuple((share * s).sum(0) for s in ghosts))
            new = tuple(
                jnp.where(total > 0, self.momentum * r + (1 - self.momentum) * a, r)
                for r, a in zip(running, average, strict=True)
            )
        else:
            seen = (count > 0).astype(count.dtype)
            later = seen.sum(0) - jnp.cumsum(seen, 0)  # ghost batches that come after each
            weight = (1 - self.momentum) * seen * self.momentum**later
            decay = self.momentum ** seen.sum(0)
            new = pmean(
                tuple(decay * r + (weight * s).sum(0) for r, s in zip(running, ghosts, strict=True))
            )
        return new[0].astype(running[0].dtype), new[1].astype(running[1].dtype)


def _cuts(batch: int, size: int) -> list[tuple[tuple[int, int], int]]:
    """The examples (first, last) that are whole ghost batches, with their size; the remainder."""
    whole = batch // size * size
    cuts = [((0, whole), size), ((whole, batch), batch - whole)]
    return [((first, last), size) for (first, last), size in cuts if first < last]


def _split(a: Array, size: int, axis: int) -> Array:
    """`[..., batch, ...]` as ghost batches, `[..., k, size, ...]`."""
    return a.reshape(*a.shape[:axis], -1, size, *a.shape[axis + 1 :])


def _moments(
    x: Array,
    mask: Array | None,
    axes: tuple[int, ...],
    dtype: DTypeLike | None,
    use_fast_variance: bool,
    force_float32: bool,
) -> tuple[Array, Array, Array]:
    """Mean, biased variance and number of entries, as `flax.linen.BatchNorm` computes them."""
    dtype = jnp.result_type(x) if dtype is None else dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32) if force_float32 else dtype)
    # Where nothing is kept, any finite statistics do: they count as zero entries.
    kept = None if mask is None else mask | ~mask.any(axes, keepdims=True)
    mean = x.mean(axes, where=kept)
    if use_fast_variance:
        var = jnp.maximum(0.0, _abs_sq(x).mean(axes, where=kept) - _abs_sq(mean))
    else:
        var = _abs_sq(x - jnp.expand_dims(mean, axes)).mean(axes, where=kept)
    if mask is None:
        count = jnp.full(var.shape, x.size // var.size, jnp.float32)
    else:
        count = mask.sum(axes, dtype=jnp.float32)
    return mean, var, count


def _abs_sq(x: Array) -> Array:
    return (x * jnp.conj(x)).real


def _normalize(
    x: Array,
    mean: Array,
    var: Array,
    scale: Array | None,
    bias: Array | None,
    epsilon: float,
    dtype: DTypeLike | None,
) -> Array:
    """`(x - mean) / sqrt(var + epsilon) * scale + bias`, in the order of operations of Flax."""
    multiplier = lax.rsqrt(var + epsilon)
    if scale is not None:
        multiplier *= scale
    y = (x - mean) * multiplier
    if bias is not None:
        y += bias
    parameters = [p for p in (scale, bias) if p is not None]
    return y.astype(canonicalize_dtype(x, *parameters, dtype=dtype))
