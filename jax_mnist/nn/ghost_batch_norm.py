"""Ghost batch normalisation: pure functions, and a `flax.linen` layer that holds their variables.

This file needs only JAX and Flax: copy it into your own project if you like. The mathematics is in
`ghost_batch_norm` and `update_running_statistics`, which work without Flax's modules too.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.typing import ArrayLike, DTypeLike


class Statistics(NamedTuple):
    """Statistics of ghost batches, each an array `[ghost batches, *features]`.

    Attributes:
      mean: The mean of each ghost batch.
      var: The biased variance of each ghost batch.
      entries: The number of entries behind them (those that the mask keeps), float32.
    """

    mean: Array
    var: Array
    entries: Array


def ghost_batch_norm(
    x: ArrayLike,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    ghost_batch_size: int,
    axis: int | Sequence[int] = -1,
    batch_axis: int = 0,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    use_fast_variance: bool = True,
    force_float32_reductions: bool = True,
) -> tuple[Array, Statistics]:
    """Normalises each ghost batch of `x` with its own mean and biased variance.

    The batch is cut, in order, into ghost batches of `ghost_batch_size` examples; if that does not
    divide the batch, the last ghost batch is the smaller remainder. In each, with its mean `mu` and
    variance `v`, every entry becomes `(x - mu) / sqrt(v + epsilon) * scale + bias`.

    Args:
      x: The input, `[batch, ..., features]`, or with the axes given by `batch_axis` and `axis`.
      scale: `[*features]`, or None for 1.
      bias: `[*features]`, or None for 0.
      ghost_batch_size: Examples in a ghost batch, at least 1. If there are no more examples than
        this, the result is exactly that of `flax.linen.BatchNorm`.
      axis: The feature axis, or axes. The statistics are taken over all others.
      batch_axis: The axis that is cut.
      epsilon: Added to the variance before the square root.
      mask: Boolean, broadcastable to `x`: which entries count in the statistics. All entries are
        normalised.
      dtype: The dtype of the result; by default inferred from `x`, `scale` and `bias`.
      use_fast_variance: Compute the variance as `E[x²] - E[x]²`, in one pass over the input,
        instead of as `E[(x - E[x])²]`, in two passes, which is more accurate.
      force_float32_reductions: Compute the statistics in at least float32.

    Returns:
      The normalised array, of the shape of `x`, and the statistics of the ghost batches.

    Raises:
      ValueError: `ghost_batch_size` is less than 1, `x` has fewer than two dimensions, `axis` or
        `batch_axis` is not an axis of `x`, or both name the same axis.
    """
    _check_size(ghost_batch_size)
    x = jnp.asarray(x)
    batch_axis, feature_axes = _axes(x.shape, axis, batch_axis)
    inner_axes = tuple(a for a in range(x.ndim) if a not in (batch_axis, *feature_axes))
    single = ghost_batch_size >= x.shape[batch_axis]

    # If there are several ghost batches, take the moments of each example first: these are
    # small and cheap to cut into ghost batches, and the input itself is never cut or copied.
    moments_dtype = jnp.result_type(x) if dtype is None else jnp.dtype(dtype)
    if force_float32_reductions:
        moments_dtype = jnp.promote_types(moments_dtype, jnp.float32)
    axes = (*inner_axes, batch_axis) if single else inner_axes
    moments = _moments(x.astype(moments_dtype), mask, axes, use_fast_variance)
    moments = [m.squeeze(inner_axes) for m in moments]
    position = sorted((batch_axis, *feature_axes)).index(batch_axis)  # of the batch in `moments`
    if single:
        mean, var, count = _merge(moments, position, use_fast_variance)
        y = _normalize(x, (mean, var), scale, bias, axis=feature_axes, epsilon=epsilon, dtype=dtype)
        return y, Statistics(mean[None], var[None], count[None])

    # On a CPU, XLA would repeat this computation inside everything that reads its result, which
    # makes a training step take 1.2 times as long.
    metadata = {"inlineable": "false"} if jax.default_backend() == "cpu" else {}
    with set_xla_metadata(**metadata):
        statistics, affine_maps = _cut(
            moments,
            scale,
            bias,
            size=ghost_batch_size,
            axis=position,
            epsilon=epsilon,
            use_fast_variance=use_fast_variance,
        )
    centre, multiplier, offset = jax.tree.map(lambda a: jnp.expand_dims(a, inner_axes), affine_maps)
    y = (x if centre is None else x - centre) * multiplier + offset
    return y.astype(canonicalize_dtype(x, scale, bias, dtype=dtype)), statistics


def update_running_statistics(
    running: tuple[Array, Array],
    ghosts: Statistics,
    *,
    momentum: float,
    stats_update: Literal["mean", "sequential"] = "mean",
    axis_name: str | None = None,
    axis_index_groups: Any = None,
) -> tuple[Array, Array]:
    """The running mean and variance after a training step.

    With `s_1 … s_k` the statistics of the ghost batches, `n_1 … n_k` their numbers of entries and
    `m` the momentum, a running statistic `r` is updated by one of two rules:

    - `"mean"`: `r <- m r + (1 - m) sum_i n_i s_i / sum_i n_i`. One update a step, however many
      ghost batches there are, each weighted by its size.
    - `"sequential"`: `r <- m r + (1 - m) s_i` for `i = 1 … k` in order, as in Algorithm 1 of
      arXiv:1705.08741, computed as `m^k r + (1 - m) sum_i m^(k-i) s_i`. The momentum acts once per
      ghost batch, so the more ghost batches there are, the faster the past is forgotten.

    A ghost batch without entries (all of it is masked) changes nothing under either rule.

    Args:
      running: Running mean and variance, each `[*features]`.
      ghosts: The statistics that `ghost_batch_norm` returns.
      momentum: The decay `m`, in [0, 1].
      stats_update: The rule.
      axis_name: The mapped axis (of `jax.shard_map`, `jax.pmap` or `jax.vmap`) to average over.
      axis_index_groups: Groups of indices of that axis to average within; by default all.

    Returns:
      The updated running mean and variance, in the dtypes of `running`.

    Raises:
      ValueError: `stats_update` is neither of the two rules.
    """
    _check_rule(stats_update)
    psum = pmean = lambda tree: tree
    if axis_name is not None:
        groups = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
        psum, pmean = (functools.partial(f, **groups) for f in (lax.psum, lax.pmean))
    count = ghosts.entries
    if stats_update == "mean":
        total = psum(count.sum(0))
        weight = (1 - momentum) * count / jnp.maximum(total, 1)
        decay = jnp.where(total > 0, momentum, 1)
        added = psum([(weight * s).sum(0) for s in (ghosts.mean, ghosts.var)])
        new = [decay * r + a for r, a in zip(running, added, strict=True)]
    else:
        seen = (count > 0).astype(count.dtype)
        later = seen.sum(0) - jnp.cumsum(seen, 0)  # ghost batches that come after each
        weight = (1 - momentum) * seen * momentum**later
        decay = momentum ** seen.sum(0)
        added = [(weight * s).sum(0) for s in (ghosts.mean, ghosts.var)]
        new = pmean([decay * r + a for r, a in zip(running, added, strict=True)])
    mean, var = (n.astype(r.dtype) for n, r in zip(new, running, strict=True))
    return mean, var


class GhostBatchNorm(nn.Module):
    """Batch normalisation over small "ghost" batches, a drop-in for `flax.linen.BatchNorm`.

    In training, each ghost batch is normalised with its own statistics, see `ghost_batch_norm`.
    Inference uses the running statistics, cuts nothing, and takes a batch of any size.

    Parameters (`scale`, `bias`), the collection `batch_stats` (`mean`, `var`) and the constructor's
    arguments are those of `flax.linen.BatchNorm`: one can replace the other, and a checkpoint of
    one loads into the other. The arguments that are new or differ are described below.

    Hoffer, Hubara and Soudry, "Train longer, generalize better" (arXiv:1705.08741), Algorithm 1;
    as a regulariser in Summers and Dinneen, "Four things everyone should know to improve batch
    normalization" (arXiv:1906.03548).

    Example::

        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm
        >>> norm = GhostBatchNorm(ghost_batch_size=16)
        >>> x = jax.random.normal(jax.random.key(0), (64, 28, 28, 8))
        >>> variables = norm.init(jax.random.key(1), x, use_running_average=False)
        >>> y, updates = norm.apply(
        ...     variables, x, use_running_average=False, mutable=["batch_stats"])
        >>> abs(y[:16].mean()).round(3), y[:16].std().round(3)
        (Array(0., dtype=float32), Array(1., dtype=float32))

    Attributes:
      use_running_average: Whether to normalise with the running statistics (inference) or with the
        ghost batches' own (training). Given here or in the call, not in both.
      ghost_batch_size: Examples in a ghost batch, at least 1.
      stats_update: `"mean"` or `"sequential"`, see `update_running_statistics`.
      axis_name: The mapped axis over which the batch is spread, if it is. Ghost batches stay on
        their device: normalising needs no communication, and only the updates of the running
        statistics are averaged.
      batch_axis: The axis that is cut into ghost batches; not in `axis`, the feature axes.
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
          x: See `ghost_batch_norm`.
          use_running_average: See the attribute of this name.
          mask: See `ghost_batch_norm`. Without effect in inference.

        Returns:
          An array of the shape of `x`.

        Raises:
          ValueError: See `ghost_batch_norm` and `update_running_statistics`; or
            `use_running_average` is given twice or not at all.
        """
        _check_size(self.ghost_batch_size)
        _check_rule(self.stats_update)
        x = jnp.asarray(x)
        _, feature_axes = _axes(x.shape, self.axis, self.batch_axis)
        inference = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        features = [x.shape[a] for a in feature_axes]
        stats_dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        mean = self.variable("batch_stats", "mean", jnp.zeros, features, stats_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, features, stats_dtype)
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, features, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, features, self.param_dtype)
        running, epsilon, dtype = (mean.value, var.value), self.epsilon, self.dtype
        if inference:
            return _normalize(
                x, running, scale, bias, axis=feature_axes, epsilon=epsilon, dtype=dtype
            )
        y, statistics = ghost_batch_norm(
            x,
            scale,
            bias,
            ghost_batch_size=self.ghost_batch_size,
            axis=self.axis,
            batch_axis=self.batch_axis,
            epsilon=epsilon,
            mask=mask,
            dtype=dtype,
            use_fast_variance=self.use_fast_variance,
            force_float32_reductions=self.force_float32_reductions,
        )
        if not self.is_initializing():
            mean.value, var.value = update_running_statistics(
                running,
                statistics,
                momentum=self.momentum,
                stats_update=self.stats_update,
                axis_name=self.axis_name,
                axis_index_groups=self.axis_index_groups,
            )
        return y


def _check_size(ghost_batch_size: int) -> None:
    if ghost_batch_size < 1:
        raise ValueError(f"ghost_batch_size must be at least 1, got {ghost_batch_size}")


def _check_rule(stats_update: str) -> None:
    if stats_update not in ("mean", "sequential"):
        raise ValueError(f"stats_update must be 'mean' or 'sequential', got {stats_update!r}")


def _axes(
    shape: tuple[int, ...], axis: int | Sequence[int], batch_axis: int
) -> tuple[int, tuple[int, ...]]:
    """The batch's axis and the features' axes, counted from 0, the latter in order."""
    ndim = len(shape)
    given = (batch_axis, *((axis,) if isinstance(axis, int) else axis))
    first, *features = (a % ndim if -ndim <= a < ndim else ndim for a in given)
    if ndim < 2 or len({first, *features}) < len(given) or ndim in (first, *features):
        raise ValueError(
            "GhostBatchNorm needs an input of at least two dimensions and a feature axis other "
            f"than the batch's; got shape {shape}, axis={axis} and batch_axis={batch_axis}"
        )
    return first, tuple(sorted(features))


def _moments(
    x: Array, mask: ArrayLike | None, axes: tuple[int, ...], use_fast_variance: bool
) -> list[Array]:
    """Number of entries, mean, and mean square or variance, over `axes`, which keep size 1.

    The last is the mean square for the fast variance. Computed as in `flax.linen.BatchNorm`.
    """
    if mask is not None:
        mask = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
    # If nothing is kept, the moments only have to be finite, because they count as zero entries.
    kept = None if mask is None else mask | ~mask.any(axes, keepdims=True)
    mean = x.mean(axes, keepdims=True, where=kept)
    second = _abs_sq(x if use_fast_variance else x - mean).mean(axes, keepdims=True, where=kept)
    if mask is None:
        return [jnp.full(mean.shape, x.size // mean.size, jnp.float32), mean, second]
    return [mask.sum(axes, keepdims=True, dtype=jnp.float32), mean, second]


def _merge(
    moments: Sequence[Array], axis: int, use_fast_variance: bool
) -> tuple[Array, Array, Array]:
    """Mean, biased variance and count of one ghost batch, whose parts' moments lie along `axis`."""
    count, mean, second = moments
    total = count.sum(axis, keepdims=True)
    weight = jnp.where(total > 0, count, 1)
    weight = (weight / weight.sum(axis, keepdims=True)).astype(second.dtype)
    merged_mean = (weight * mean).sum(axis, keepdims=True)
    if use_fast_variance:
        square = (weight * second).sum(axis)
        var = jnp.maximum(0, square - _abs_sq(merged_mean.squeeze(axis)))
    else:
        var = (weight * (second + _abs_sq(mean - merged_mean))).sum(axis)
    return merged_mean.squeeze(axis), var, total.squeeze(axis)


@functools.partial(jax.jit, static_argnames=("size", "axis", "epsilon", "use_fast_variance"))
def _cut(
    moments: Sequence[Array],
    scale: Array | None,
    bias: Array | None,
    *,
    size: int,
    axis: int,
    epsilon: float,
    use_fast_variance: bool,
) -> tuple[Statistics, tuple[Array | None, Array, Array]]:
    """Cuts examples into ghost batches, given their moments, with the examples along `axis`.

    Returns:
      The statistics of the ghost batches, and for each example, again along `axis`, `centre,
      multiplier, offset`, with which an entry becomes `(x - centre) * multiplier + offset`. With
      the fast variance `centre` is None, so that an entry and its gradient cost one product and
      one sum; the digits that this loses are lost by the fast variance anyway.
    """
    merge = functools.partial(_merge, axis=axis, use_fast_variance=use_fast_variance)
    start, ghosts, examples = 0, [], []
    batch = moments[0].shape[axis]
    for number, length in ((batch // size, size), (1, batch % size)):
        if length == 0:
            continue
        cut = [
            lax.slice_in_dim(m, start, start + number * length, axis=axis).reshape(
                *m.shape[:axis], number, length, *m.shape[axis + 1 :]
            )
            for m in moments
        ]
        ghosts.append(jax.vmap(merge, in_axes=axis, out_axes=axis)(cut))
        examples.append([jnp.repeat(s, length, axis) for s in ghosts[-1][:2]])
        start += number * length
    mean, var = (jnp.concatenate(s, axis) for s in zip(*examples, strict=True))
    multiplier = lax.rsqrt(var + epsilon)
    if scale is not None:
        multiplier *= jnp.expand_dims(scale, axis)
    offset = 0.0 if bias is None else jnp.expand_dims(bias, axis)
    offset = jnp.broadcast_to(offset, mean.shape)
    together = [jnp.concatenate(s, axis) for s in zip(*ghosts, strict=True)]
    statistics = Statistics(*(jnp.moveaxis(s, axis, 0) for s in together))
    if use_fast_variance:
        return statistics, (None, multiplier, offset - mean * multiplier)
    return statistics, (mean, multiplier, offset)


def _normalize(
    x: Array,
    statistics: tuple[Array, Array],
    scale: Array | None,
    bias: Array | None,
    *,
    axis: tuple[int, ...],
    epsilon: float,
    dtype: DTypeLike | None,
) -> Array:
    """Normalises with one mean and variance, `[*features]`, exactly as `flax.linen.BatchNorm`."""
    others = tuple(a for a in range(x.ndim) if a not in axis)
    expand = functools.partial(jnp.expand_dims, axis=others)
    mean, var = map(expand, statistics)
    multiplier = lax.rsqrt(var + epsilon)
    if scale is not None:
        multiplier *= expand(scale)
    y = (x - mean) * multiplier
    if bias is not None:
        y += expand(bias)
    return y.astype(canonicalize_dtype(x, scale, bias, dtype=dtype))


def _abs_sq(x: Array) -> Array:
    return (x * jnp.conj(x)).real
