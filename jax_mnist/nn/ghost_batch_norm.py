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

from jax_mnist.nn.xla import separate


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
        >>> from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm
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
        gamma, beta = (
            p if p is None else jnp.expand_dims(p, reduction_axes) for p in (scale, bias)
        )
        parameters = [p for p in (scale, bias) if p is not None]
        result_dtype = canonicalize_dtype(x, *parameters, dtype=self.dtype)
        if use_running_average:
            mean, var = (
                jnp.expand_dims(r.value, reduction_axes) for r in (running_mean, running_var)
            )
            return _normalize(x, mean, var, gamma, beta, self.epsilon).astype(result_dtype)

        batch = x.shape[batch_axis]
        one = self.ghost_batch_size >= batch
        # Of several ghost batches, the moments of each example first: they leave little to cut.
        moments = _moments(
            x,
            None if mask is None else jnp.broadcast_to(jnp.asarray(mask, bool), x.shape),
            tuple(a for a in reduction_axes if one or a != batch_axis),
            self.dtype,
            self.use_fast_variance,
            self.force_float32_reductions,
        )
        if one:
            statistics = _merge(*moments, batch_axis, self.use_fast_variance)
            y = _normalize(x, *statistics[:2], gamma, beta, self.epsilon)
        else:
            settings = (batch_axis, self.ghost_batch_size, self.epsilon, self.use_fast_variance)
            statistics, (centre, multiplier, offset) = _ghosts(*moments, gamma, beta, *settings)
            y = (x if centre is None else x - centre) * multiplier + offset
        if not self.is_initializing():
            mean, var, count = (
                jnp.moveaxis(s, batch_axis, 0).reshape(-1, *features) for s in statistics
            )
            running_mean.value, running_var.value = self._updated_statistics(
                (running_mean.value, running_var.value), (mean, var), count
            )
        return y.astype(result_dtype)

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


def _moments(
    x: Array,
    mask: Array | None,
    axes: tuple[int, ...],
    dtype: DTypeLike | None,
    use_fast_variance: bool,
    force_float32: bool,
) -> tuple[Array, Array, Array]:
    """Over `axes`, which keep size 1: number of entries, mean, and mean square or variance.

    With the fast variance it is the mean square. Computed as `flax.linen.BatchNorm` does.
    """
    dtype = jnp.result_type(x) if dtype is None else dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32) if force_float32 else dtype)
    # Where nothing is kept, any finite moments do: they count as zero entries.
    kept = None if mask is None else mask | ~mask.any(axes, keepdims=True)
    mean = x.mean(axes, keepdims=True, where=kept)
    centred = x if use_fast_variance else x - mean
    second = _abs_sq(centred).mean(axes, keepdims=True, where=kept)
    if mask is None:
        count = jnp.full(mean.shape, x.size // mean.size, jnp.float32)
    else:
        count = mask.sum(axes, keepdims=True, dtype=jnp.float32)
    return count, mean, second


def _merge(
    count: Array, mean: Array, second: Array, axis: int, use_fast_variance: bool
) -> tuple[Array, Array, Array]:
    """Mean, biased variance and number of entries of one ghost batch, from what `_moments` gives.

    Along `axis` there are the moments of its parts; it keeps size 1.
    """
    if count.shape[axis] > 1:
        total = count.sum(axis, keepdims=True)
        weight = jnp.where(total > 0, count, 1)
        weight = (weight / weight.sum(axis, keepdims=True)).astype(second.dtype)
        parts_mean, count = mean, total
        mean = (weight * mean).sum(axis, keepdims=True)
        if not use_fast_variance:  # of the parts' means around the common one
            second += _abs_sq(parts_mean - mean)
        second = (weight * second).sum(axis, keepdims=True)
    var = jnp.maximum(0, second - _abs_sq(mean)) if use_fast_variance else second
    return mean, var, count


@functools.partial(separate, static_argnums=(5, 6, 7, 8))
def _ghosts(
    count: Array,
    mean: Array,
    second: Array,
    scale: Array | None,
    bias: Array | None,
    axis: int,
    size: int,
    epsilon: float,
    use_fast_variance: bool,
) -> tuple[tuple[Array, ...], tuple[Array | None, Array, Array | float]]:
    """Ghost batches cut along `axis` from the moments of examples.

    Returns:
      Mean, biased variance and number of entries of each ghost batch along `axis`; and for each
      example `centre, multiplier, offset`, with which an entry becomes
      `(x - centre) * multiplier + offset`. With the fast variance there is no centre, which makes
      one product and one sum an entry of it, and of its gradient; it costs the digits that the fast
      variance costs.
    """
    batch = count.shape[axis]
    whole = batch // size * size
    merge = functools.partial(_merge, axis=axis, use_fast_variance=use_fast_variance)
    ghosts, examples = [], []
    for first, last in ((0, whole), (whole, batch)):
        length = size if first == 0 else batch - whole  # of a ghost batch
        if not length:
            continue
        cut = [
            lax.slice_in_dim(a, first, last, axis=axis).reshape(
                *a.shape[:axis], -1, length, *a.shape[axis + 1 :]
            )
            for a in (count, mean, second)
        ]
        statistics = jax.vmap(merge, in_axes=axis, out_axes=axis)(*cut)
        ghosts.append([s.squeeze(axis + 1) for s in statistics])
        examples.append([jnp.repeat(s, length, axis) for s in ghosts[-1][:2]])
    each_mean, each_var = (jnp.concatenate(s, axis) for s in zip(*examples, strict=True))
    multiplier = lax.rsqrt(each_var + epsilon)
    if scale is not None:
        multiplier *= scale
    offset = 0.0 if bias is None else bias
    ghosts_statistics = tuple(jnp.concatenate(s, axis) for s in zip(*ghosts, strict=True))
    if use_fast_variance:
        return ghosts_statistics, (None, multiplier, offset - each_mean * multiplier)
    return ghosts_statistics, (each_mean, multiplier, offset)


def _abs_sq(x: Array) -> Array:
    return (x * jnp.conj(x)).real


def _normalize(
    x: Array, mean: Array, var: Array, scale: Array | None, bias: Array | None, epsilon: float
) -> Array:
    """`(x - mean) / sqrt(var + epsilon) * scale + bias`, in the order of operations of Flax."""
    multiplier = lax.rsqrt(var + epsilon)
    if scale is not None:
        multiplier *= scale
    y = (x - mean) * multiplier
    return y if bias is None else y + bias
