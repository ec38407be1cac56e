"""Ghost batch normalisation: pure functions, and a `flax.linen` layer that holds their variables.

This file needs only JAX and Flax: copy it into your own project if you like. The mathematics is in
`ghost_batch_norm` and `update_running_statistics`, which work without Flax's modules too.
"""

import dataclasses
import functools
import itertools
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike, DTypeLike

StatsUpdate = Literal["mean", "pooled", "sequential"]


class Statistics(NamedTuple):
    """Statistics of ghost batches, each an array `[ghost batches, *features]`.

    Attributes:
      mean: The mean of each ghost batch.
      var: The biased variance of each ghost batch.
      entries: The number of entries behind them (those that the mask keeps), a float. If devices
        share ghost batches, only the device that holds the first example of a ghost batch counts
        its entries, and the others have 0.
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
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> tuple[Array, Statistics]:
    """Normalises each ghost batch of `x` with its own mean and biased variance.

    The batch of `n` examples is cut, in order and as evenly as possible, into the fewest ghost
    batches that have at most `ghost_batch_size` examples: `ceil(n / ghost_batch_size)` of them,
    whose sizes differ by at most one, the larger first (as `numpy.array_split`). In each, with its
    mean `mu` and variance `v`, every entry becomes `(x - mu) / sqrt(v + epsilon) * scale + bias`.

    However a batch is spread over devices, its ghost batches are those that one device would form.
    If it is spread over a mesh, by automatic or explicit sharding, nothing needs to be said. Inside
    `jax.shard_map`, `jax.pmap` or `jax.vmap`, name the mapped axis. Devices communicate only if a
    ghost batch does not lie on one of them, or if one has ghost batches of different sizes.

    Args:
      x: The input, `[batch, ..., features]`, or with the axes given by `batch_axis` and `axis`.
      scale: `[*features]`, or None for 1.
      bias: `[*features]`, or None for 0.
      ghost_batch_size: The most examples in a ghost batch, at least 1. If the batch has no more
        examples than this, the result is exactly that of `flax.linen.BatchNorm`, except that a mask
        weights devices by the entries that it keeps there, where Flax weights them equally.
      axis: The feature axis, or axes. The statistics are taken over all others.
      batch_axis: The axis that is cut.
      epsilon: Added to the variance before the square root.
      mask: Boolean, broadcastable to `x`: which entries count in the statistics. All entries are
        normalised.
      dtype: The dtype of the result; by default inferred from `x`, `scale` and `bias`.
      use_fast_variance: Compute the variance as `E[|x|²] - |E[x]|²`, in one pass over the input,
        instead of as `E[|x - E[x]|²]`, in two passes, which is more accurate.
      force_float32_reductions: Compute the statistics in at least float32.
      axis_name: The mapped axis over which the batch is spread, or several. `x` still has its
        batch axis: under a `jax.vmap` over single examples, give it one of size 1.
      axis_index_groups: Groups of indices of that axis, all of one size: each group of devices then
        holds a batch of its own. By default, all devices hold one batch.

    Returns:
      The normalised array, of the shape of `x`, and the statistics of the ghost batches.

    Raises:
      ValueError: `ghost_batch_size` is not an integer of at least 1, `x` has fewer than two
        dimensions, `axis` or `batch_axis` is not an axis of `x`, both name the same axis, or the
        groups of devices are not of one size.

    Warns:
      UserWarning: A ghost batch has one example, although the batch has several, and the input has
        no axes besides the batch's and the features': such an example is its own mean, so it
        becomes `bias` whatever it was.
    """
    check_arguments(None, ghost_batch_size)
    original = x = jnp.asarray(x)
    devices = Devices(axis_name, axis_index_groups)
    batch_axis, feature_axes = _axes(x.shape, axis, batch_axis)
    inner_axes = tuple(a for a in range(x.ndim) if a not in (batch_axis, *feature_axes))
    position = sorted((batch_axis, *feature_axes)).index(batch_axis)  # of the batch in `parts`
    batch = x.shape[batch_axis] * devices.number
    ghosts = number_of_ghosts(batch, ghost_batch_size)
    if ghosts > 1 and batch < 2 * ghosts and all(x.shape[a] == 1 for a in inner_axes):
        warnings.warn(
            f"a ghost batch of one example normalises it to zero; for a batch of {batch}, use a "
            f"ghost_batch_size of at least {2 + batch % 2} instead of {ghost_batch_size}",
            stacklevel=2,
        )

    moments_dtype = jnp.result_type(x) if dtype is None else jnp.dtype(dtype)
    if force_float32_reductions:
        moments_dtype = jnp.promote_types(moments_dtype, jnp.float32)
    x = x.astype(moments_dtype)
    if ghosts == 1:
        axes = (*inner_axes, batch_axis)
        mean, var, count = _statistics(x, mask, axes, use_fast_variance, devices)
        affine = affine_map(*_expand((mean, var, scale, bias), axes), epsilon=epsilon)
        entries = jnp.where(devices.index() == 0, count, 0)
        statistics = Statistics(mean[None], var[None], entries[None])
    else:
        # If a ghost batch is made of whole devices' shares, the moments of each share are enough.
        axes = (*inner_axes, batch_axis) if devices.number % ghosts == 0 else inner_axes
        parts, merge = _parts(x, mask, axes, use_fast_variance)
        maps, statistics = cut_into_ghosts(
            [p.squeeze(inner_axes) for p in parts],
            scale,
            bias,
            ghosts=ghosts,
            axis=position,
            epsilon=epsilon,
            use_fast_variance=use_fast_variance,
            merge=merge,
            devices=devices,
            even=batch % ghosts == 0,
        )
        affine = _expand(maps, inner_axes)
    y = _apply(original, *affine)
    return y.astype(canonicalize_dtype(original, scale, bias, dtype=dtype)), statistics


def number_of_ghosts(batch: int, ghost_batch_size: int) -> int:
    """The fewest ghost batches of at most `ghost_batch_size` examples."""
    return max(1, -(-batch // operator.index(ghost_batch_size)))


def update_running_statistics(
    running: tuple[Array, Array],
    ghosts: Statistics,
    *,
    momentum: float,
    stats_update: StatsUpdate = "mean",
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> tuple[Array, Array]:
    """The running mean and variance after a training step.

    With `mu_1 … mu_k` and `v_1 … v_k` the means and variances of the ghost batches, `n_1 … n_k`
    their numbers of entries, `w_i = n_i / sum_j n_j` and `m` the momentum, a running statistic `r`
    is updated by one of three rules:

    - `"mean"`: `r <- m r + (1 - m) sum_i w_i s_i`, where `s` is `mu` or `v`. One update a step,
      however many ghost batches there are.
    - `"pooled"`: one update a step with the mean and variance of the whole batch. The mean is that
      of `"mean"`; the variance is `sum_i w_i (v_i + |mu_i - mu|²)`, which equals `E[|x|²] -
      |E[x]|²` over all ghost batches, as in `VirtualBatchNorm` of google/init2winit.
    - `"sequential"`: `r <- m r + (1 - m) s_i` for `i = 1 … k` in order, as in Algorithm 1 of
      arXiv:1705.08741, computed as `m^k r + (1 - m) sum_i m^(k-i) s_i`. The momentum acts once per
      ghost batch, so the more ghost batches there are, the faster the past is forgotten.

    A ghost batch without entries (all of it is masked) changes nothing under any rule.

    Args:
      running: Running mean and variance, each `[*features]`.
      ghosts: The statistics that `ghost_batch_norm` returns.
      momentum: The decay `m`, in [0, 1].
      stats_update: The rule.
      axis_name: As given to `ghost_batch_norm`.
      axis_index_groups: As given to `ghost_batch_norm`.

    Returns:
      The updated running mean and variance, the same on all devices of the axis, or of a group.
      Their dtypes are, as in Flax, those of `running`, promoted to those of the statistics.

    Raises:
      ValueError: `stats_update` is none of the three rules.
    """
    check_arguments(None, 1, stats_update)
    devices = Devices(axis_name, axis_index_groups)
    mean, var, count = ghosts
    if stats_update == "sequential":
        # Explicit sharding refuses a cumulative sum along an axis that is spread over devices.
        weight = (_unshard(count, 0) > 0).astype(count.dtype)
        own = weight.sum(0, keepdims=True)
        later = own - jnp.cumsum(weight, 0) + devices.sum_of_later(own)
        weight *= momentum**later
        decay = momentum ** devices.sum(own)
        added = devices.sum([(weight * s).sum(0) for s in (mean, var)])
    else:
        own = count.sum(0, keepdims=True)
        weight = count / jnp.maximum(own, 1)
        if stats_update == "pooled":
            _, (batch_mean,) = devices.average([(weight * mean).sum(0, keepdims=True)], own)
            var = var + _abs_sq(mean - batch_mean)
        each = [(weight * s).sum(0, keepdims=True) for s in (mean, var)]
        total, added = devices.average(each, own)  # in one operation between the devices
        added = [a[0] for a in added]
        decay = jnp.where(total > 0, momentum, 1)
    new_mean, new_var = (
        (decay[0] * old + (1 - momentum) * new).astype(jnp.promote_types(old.dtype, s.dtype))
        for old, new, s in zip(running, added, (mean, var), strict=True)
    )
    return new_mean, new_var


# What `ghost_batch_norm` and a layer call the same; the layer of NNX lacks two of them.
_OPTIONS = (
    "ghost_batch_size", "axis", "batch_axis", "epsilon", "dtype",
    "use_fast_variance", "force_float32_reductions",
)  # fmt: skip


def normalize_and_update(
    layer: Any,
    x: Array,
    running: tuple[Array, Array],
    scale: Array | None,
    bias: Array | None,
    mask: ArrayLike | None,
    devices: dict[str, Any],
) -> tuple[Array, tuple[Array, Array]]:
    """The output and the running statistics of a training step.

    The options are the attributes of the layer, which is one of linen or of NNX.
    """
    options = {name: getattr(layer, name) for name in _OPTIONS if hasattr(layer, name)}
    y, statistics = ghost_batch_norm(x, scale, bias, mask=mask, **options, **devices)
    return y, updated_statistics(layer, running, statistics, devices)


def updated_statistics(
    layer: Any, running: tuple[Array, Array], statistics: Statistics, devices: dict[str, Any]
) -> tuple[Array, Array]:
    """The running statistics after a training step, with the options of a layer."""
    options = {"momentum": layer.momentum, "stats_update": layer.stats_update}
    return update_running_statistics(running, statistics, **options, **devices)


class GhostBatchNorm(nn.BatchNorm):
    """Batch normalisation over small "ghost" batches, a drop-in for `flax.linen.BatchNorm`.

    In training, each ghost batch is normalised with its own statistics, see `ghost_batch_norm`.
    Inference uses the running statistics, cuts nothing, and takes a batch of any size.

    Parameters (`scale`, `bias`), the collection `batch_stats` (`mean`, `var`) and the constructor's
    arguments are those of `flax.linen.BatchNorm`, and three more: one can replace the other, and a
    checkpoint of one loads into the other. With `axis_name`, the ghost batches are those of the
    whole batch; a mesh needs no name.

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
      ghost_batch_size: The most examples in a ghost batch, at least 1.
      stats_update: `"mean"`, `"pooled"` or `"sequential"`, see `update_running_statistics`.
      batch_axis: The axis that is cut into ghost batches; not in `axis`, the feature axes.
    """

    ghost_batch_size: int = 32
    stats_update: StatsUpdate = "mean"
    batch_axis: int = 0

    def __post_init__(self) -> None:
        """Refuses bad arguments before they are used."""
        check_arguments(self.use_running_average, self.ghost_batch_size, self.stats_update)
        super().__post_init__()

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
          use_running_average: Whether to normalise with the running statistics (inference), unless
            the attribute of this name says so.
          mask: See `ghost_batch_norm`. Without effect in inference.

        Raises:
          TypeError: `use_running_average` is not a boolean.
          ValueError: See `ghost_batch_norm`; or `use_running_average` is given twice or not at all.
        """
        check_arguments(use_running_average, self.ghost_batch_size, self.stats_update)
        x = jnp.asarray(x)
        _, feature_axes = _axes(x.shape, self.axis, self.batch_axis)
        inference = self._is_inference(use_running_average)
        mean, var, scale, bias = self._variables([x.shape[a] for a in feature_axes])
        if inference:
            others = tuple(a for a in range(x.ndim) if a not in feature_axes)
            expanded = _expand((mean.value, var.value, scale, bias), others)
            y = _apply(x, *affine_map(*expanded, epsilon=self.epsilon))
            return y.astype(canonicalize_dtype(x, scale, bias, dtype=self.dtype))
        running = mean.value, var.value
        y, updated = normalize_and_update(self, x, running, scale, bias, mask, self._devices())
        if not self.is_initializing():
            mean.value, var.value = updated
        return y

    @nn.compact
    def _variables(self, features: Sequence[int]) -> tuple[Any, Any, Any, Any]:
        """Running mean and variance (variables), scale and bias (arrays, or None)."""
        stats_dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        mean = self.variable("batch_stats", "mean", jnp.zeros, features, stats_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, features, stats_dtype)
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, features, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, features, self.param_dtype)
        return mean, var, scale, bias

    def _is_inference(self, use_running_average: bool | None) -> bool:
        """Whether to use the running statistics, as the attribute or the call says."""
        name = "use_running_average"
        inference: bool = nn.merge_param(name, self.use_running_average, use_running_average)
        return inference

    def _devices(self) -> dict[str, Any]:
        """The mapped axis; as in Flax, it need not be mapped in the initialisation."""
        if self.is_initializing():
            return {}
        return {"axis_name": self.axis_name, "axis_index_groups": self.axis_index_groups}


def check_arguments(
    use_running_average: Any, ghost_batch_size: Any, stats_update: Any = "mean"
) -> None:
    """Raises a `TypeError` or a `ValueError` if an argument is bad.

    A boolean may be NumPy's, or traced. Anything else as `use_running_average` is most likely a
    size of ghost batches that was given without its name.
    """
    dtype = getattr(use_running_average, "dtype", type(use_running_average))
    if use_running_average is not None and (dtype not in (bool,) or jnp.ndim(use_running_average)):
        raise TypeError(
            f"use_running_average must be None or a boolean, got {use_running_average!r}; "
            "the size of a ghost batch is given as ghost_batch_size="
        )
    integer = hasattr(ghost_batch_size, "__index__") and not isinstance(ghost_batch_size, bool)
    if not integer or operator.index(ghost_batch_size) < 1:
        raise ValueError(
            f"ghost_batch_size must be an integer of at least 1, got {ghost_batch_size}"
        )
    if stats_update not in get_args(StatsUpdate):
        raise ValueError(
            f"stats_update must be 'mean', 'pooled' or 'sequential', got {stats_update!r}"
        )


def _axes(
    shape: tuple[int, ...], axis: int | Sequence[int], batch_axis: int
) -> tuple[int, tuple[int, ...]]:
    """The batch's axis and the features' axes, counted from 0, the latter in order."""
    ndim = len(shape)
    axes = (batch_axis, *(axis if isinstance(axis, Iterable) else (axis,)))
    first, *features = (a % ndim if -ndim <= a < ndim else ndim for a in axes)
    if ndim < 2 or len({first, *features}) < len(axes) or ndim in (first, *features):
        raise ValueError(
            "GhostBatchNorm needs an input of at least two dimensions and a feature axis other "
            f"than the batch's; got shape {shape}, axis={axis} and batch_axis={batch_axis}"
        )
    return first, tuple(sorted(features))


# What normalisation does to an entry, `(x - centre) * multiplier + offset`: three arrays that
# broadcast to the input, of which the first and the last may be None for 0.
_Map = tuple[Array | None, Array, Array | None]


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices that hold a batch: those along mapped axes, or each group of them.

    The sum over a group is taken of gathered values, since `lax.psum` within groups does not work
    in `jax.shard_map`.
    """

    axis_name: str | Sequence[str] | None = None
    axis_index_groups: Any = None

    def __post_init__(self) -> None:
        groups = self.axis_index_groups
        if groups is not None and len({len(group) for group in groups}) != 1:
            raise ValueError(f"axis_index_groups must be groups of one size, got {groups}")

    @property
    def number(self) -> int:
        """How many they are."""
        if self.axis_name is None:
            return 1
        groups = self.axis_index_groups
        return lax.axis_size(self.axis_name) if groups is None else len(groups[0])

    def index(self) -> ArrayLike:
        """The place of this device among them."""
        if self.axis_name is None:
            return 0
        place = lax.axis_index(self.axis_name)
        if self.axis_index_groups is None:
            return place
        return jnp.argsort(jnp.array(self.axis_index_groups).ravel())[place] % self.number

    def gather(self, x: Array, axis: int) -> Array:
        """Joins the arrays of all devices along `axis`."""
        groups = self.axis_index_groups
        if groups is None and AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types:
            # The gradient of lax.all_gather fails if explicit sharding spreads another axis.
            mine = jnp.arange(self.number) == self.index()
            mine = jnp.expand_dims(mine, [*range(axis), *range(axis + 1, x.ndim + 1)])
            x = self.sum(jnp.where(mine, jnp.expand_dims(x, axis), 0))
            return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
        names = (self.axis_name,) if isinstance(self.axis_name, str) else self.axis_name or ()
        for name in reversed(names):  # at once, JAX cannot gather over axes of nested jax.vmap
            x = lax.all_gather(x, name, axis=axis, tiled=True, axis_index_groups=groups)
        return x

    def sum(self, tree: Any) -> Any:
        """The sum of each array of a tree over the devices."""
        if self.axis_name is None:
            return tree
        if self.axis_index_groups is None:
            return lax.psum(tree, self.axis_name)
        return jax.tree.map(lambda x: self.gather(x[None], 0).sum(0), tree)

    def sum_of_later(self, x: Array) -> ArrayLike:
        """The sum over the devices that come after this one."""
        if self.axis_name is None:
            return 0
        later = jnp.arange(self.number) > self.index()
        return jnp.tensordot(later.astype(x.dtype), self.gather(x[None], 0), 1)

    def average(self, values: Sequence[Array], counts: Array | None) -> tuple[Any, Sequence[Array]]:
        """The total of `counts`, and averages over the devices weighted by them, if given."""
        if self.axis_name is None:
            return counts, values
        if counts is None:
            return None, [total / self.number for total in self.sum(values)]
        count, *totals = self.sum([counts, *(counts * v for v in values)])
        return count, [total / jnp.maximum(count, 1) for total in totals]

    def own(self, maps: _Map, statistics: Statistics, axis: int) -> tuple[_Map, Statistics]:
        """What belongs to this device of the maps of all parts, along `axis`, and of statistics."""
        parts = maps[1].shape[axis]
        share = parts // self.number
        index = self.index()
        maps = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, index * share, share, axis), maps)
        lengths = [n for k, n in _even_lengths(parts, len(statistics.mean)) for _ in range(k)]
        starts = itertools.accumulate(lengths[:-1], initial=0)
        mine = jnp.array([start // share for start in starts]) == index
        mine = jnp.expand_dims(mine, range(1, statistics.entries.ndim))
        entries = jnp.where(mine, statistics.entries, 0)
        return maps, statistics._replace(entries=entries)


def _moments(
    x: Array,
    mask: ArrayLike | None,
    axes: tuple[int, ...],
    use_fast_variance: bool,
    devices: Devices,
) -> list[Array]:
    """Number of entries, mean, and mean square or variance, over devices and `axes`, kept as 1.

    The last is the mean square for the fast variance. Computed as in `flax.linen.BatchNorm`.
    """
    counts_dtype = jnp.finfo(jnp.promote_types(x.dtype, jnp.float32)).dtype
    where = count = None
    if mask is not None:
        mask = _broadcast(mask, x)
        count = mask.sum(axes, keepdims=True, dtype=counts_dtype)
        x = jnp.where(mask, x, 0)  # what is masked may be infinite or NaN
        where = mask | (count == 0)  # if nothing is kept, the moments are 0

    def mean_of(*arrays: Array) -> Sequence[Array]:
        return devices.average([a.mean(axes, keepdims=True, where=where) for a in arrays], count)[1]

    if use_fast_variance:
        mean, second = mean_of(x, _abs_sq(x))
    else:
        (mean,) = mean_of(x)
        (second,) = mean_of(_abs_sq(x - mean))
    if count is None:
        entries = devices.number * x.size // mean.size
        count = _shard_like(jnp.full(mean.shape, entries, counts_dtype), mean)
    else:
        count = devices.sum(count)
    return [count, mean, second]


def _statistics(
    x: Array,
    mask: ArrayLike | None,
    axes: tuple[int, ...],
    use_fast_variance: bool,
    devices: Devices,
) -> tuple[Array, Array, Array]:
    """Mean, biased variance and number of entries, over devices and `axes`."""
    moments = _moments(x, mask, axes, use_fast_variance, devices)
    count, mean, second = (m.squeeze(axes) for m in moments)
    return mean, jnp.maximum(0, second - _abs_sq(mean)) if use_fast_variance else second, count


def _parts(
    x: Array, mask: ArrayLike | None, axes: tuple[int, ...], use_fast_variance: bool
) -> tuple[list[Array], Callable[..., tuple[Array, Array, Array]]]:
    """What to cut into ghost batches, and how the statistics of one are made of what it gets.

    These are the moments over `axes`: they are small and cheap to cut, and the input itself is
    neither cut nor copied. Without `axes`, they would be larger than the input, which is cut then.
    """
    if axes:
        return _moments(x, mask, axes, use_fast_variance, Devices()), merge_moments
    return [x] if mask is None else [x, _broadcast(mask, x)], _merge_entries


def _merge_entries(
    entries: Sequence[Array], axis: int, use_fast_variance: bool
) -> tuple[Array, Array, Array]:
    """Mean, biased variance and count of one ghost batch, given entries and perhaps their mask."""
    x, mask = entries[0], entries[1] if len(entries) > 1 else None
    return _statistics(x, mask, (axis,), use_fast_variance, Devices())


def merge_moments(
    moments: Sequence[Array], axis: int, use_fast_variance: bool
) -> tuple[Array, Array, Array]:
    """Mean, biased variance and count of one ghost batch, given the moments of its parts."""
    count, mean, second = moments
    total = count.sum(axis, keepdims=True)
    weight = count / jnp.maximum(total, 1)
    merged_mean = (weight * mean).sum(axis, keepdims=True)
    if use_fast_variance:
        var = jnp.maximum(0, (weight * second).sum(axis, keepdims=True) - _abs_sq(merged_mean))
    else:
        var = (weight * (second + _abs_sq(mean - merged_mean))).sum(axis, keepdims=True)
    merged_mean, var = merged_mean.astype(mean.dtype), var.astype(second.dtype)
    return merged_mean.squeeze(axis), var.squeeze(axis), total.squeeze(axis)


def cut_into_ghosts(
    parts: Sequence[Array],
    scale: Array | None,
    bias: Array | None,
    *,
    ghosts: int,
    devices: Devices,
    even: bool,
    **how: Any,
) -> tuple[_Map, Statistics]:
    """Cuts examples, or devices' shares, into ghost batches.

    `parts`, see `_parts`, are cut into the `ghosts` of all devices, which are `even` if all are of
    one size, as `how` says: along `axis`, with a `merge` that makes mean, variance and count of
    one, and with `epsilon` and `use_fast_variance` as in `ghost_batch_norm`.

    Returns:
      A map for each of this device's parts, along `axis`, and the statistics of its ghost batches.
      With the fast variance the maps have no centre, so that an entry and its gradient cost one
      product and one sum; the digits that this loses are lost by the fast variance anyway.
    """
    if devices.number == 1 or (even and ghosts % devices.number == 0):
        return _cut(parts, scale, bias, ghosts=ghosts // devices.number, **how)
    parts = [devices.gather(p, how["axis"]) for p in parts]
    maps, statistics = _cut(parts, scale, bias, ghosts=ghosts, **how)
    return devices.own(maps, statistics, how["axis"])


@functools.partial(jax.jit, static_argnames=("ghosts", "axis", "use_fast_variance", "merge"))
def _cut(
    parts: Sequence[Array],
    scale: Array | None,
    bias: Array | None,
    *,
    ghosts: int,
    axis: int,
    epsilon: float,
    use_fast_variance: bool,
    merge: Callable[..., tuple[Array, Array, Array]],
) -> tuple[_Map, Statistics]:
    merge_one = functools.partial(merge, axis=axis, use_fast_variance=use_fast_variance)
    example = parts[0]
    lengths = _even_lengths(example.shape[axis], ghosts)
    if ghosts % _shards(example, axis) or len(lengths) > 1:
        parts = [_unshard(p, axis) for p in parts]
    start, cut = 0, []
    for number, length in lengths:
        group = [
            lax.slice_in_dim(p, start, start + number * length, axis=axis).reshape(
                *p.shape[:axis], number, length, *p.shape[axis + 1 :]
            )
            for p in parts
        ]
        cut.append(jax.vmap(merge_one, in_axes=axis, out_axes=axis)(group))
        start += number * length
    mean, var, count = (jnp.concatenate(s, axis) for s in zip(*cut, strict=True))
    affine = affine_map(mean, var, *_expand((scale, bias), axis), epsilon=epsilon)
    if use_fast_variance:
        affine = without_centre(affine)

    def for_each_part(a: Array) -> Array:
        places = [number for number, _ in lengths[:-1]]
        groups = jnp.split(jnp.broadcast_to(a, mean.shape), places, axis)
        repeated = [_repeat(g, n, axis) for g, (_, n) in zip(groups, lengths, strict=True)]
        return _shard_like(jnp.concatenate(repeated, axis), example)

    statistics = Statistics(*(jnp.moveaxis(s, axis, 0) for s in (mean, var, count)))
    return jax.tree.map(for_each_part, affine), statistics


def _broadcast(mask: ArrayLike, x: Array) -> Array:
    """The mask, of the shape of `x` and spread over devices as it is."""
    return _shard_like(jnp.broadcast_to(jnp.asarray(mask, bool), x.shape), x)


def _even_lengths(parts: int, ghosts: int) -> list[tuple[int, int]]:
    """How `numpy.array_split` cuts: numbers of ghost batches and their lengths, in order."""
    length, longer = divmod(parts, ghosts)
    groups = ((longer, length + 1), (ghosts - longer, length))
    return [(number, length) for number, length in groups if number]


def _repeat(x: Array, times: int, axis: int) -> Array:
    """`jnp.repeat`, which does not work with explicit sharding."""
    shape = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    repeated = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), shape)
    return repeated.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def affine_map(
    mean: Array, var: Array, scale: Array | None, bias: Array | None, *, epsilon: float
) -> _Map:
    """The map of `flax.linen.BatchNorm`, of arrays that broadcast to the input."""
    multiplier = lax.rsqrt(var + epsilon)
    return mean, multiplier if scale is None else multiplier * scale, bias


def without_centre(affine: _Map) -> _Map:
    """The same map as a product and a sum."""
    centre, multiplier, offset = affine
    if centre is None:
        return affine
    shift = -centre * multiplier
    return None, multiplier, shift if offset is None else offset + shift


def _apply(x: Array, centre: Array | None, multiplier: Array, offset: Array | None) -> Array:
    y = (x if centre is None else x - centre) * multiplier
    return y if offset is None else y + offset


def _expand(arrays: Any, axes: int | Sequence[int]) -> Any:
    """Adds axes of size 1 to the arrays of a tree."""
    return jax.tree.map(lambda a: jnp.expand_dims(a, axes), arrays)


def _shards(x: Array, axis: int) -> int:
    """The number of devices over which explicit sharding spreads an axis."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] or ()
    names = (names,) if isinstance(names, str) else names
    return math.prod(sharding.mesh.shape[name] for name in names)


def _unshard(x: Array, axis: int) -> Array:
    """Undoes what explicit sharding does to an axis."""
    sharding = jax.typeof(x).sharding
    spec = [None if a == axis else names for a, names in enumerate(sharding.spec)]
    return _reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def _shard_like(x: Array, other: Array) -> Array:
    """Spreads `x` over devices as explicit sharding does with `other`."""
    return _reshard(x, jax.typeof(other).sharding)


def _reshard(x: Array, sharding: NamedSharding) -> Array:
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jax.sharding.reshard(x, sharding) if explicit else x


def _abs_sq(x: Array) -> Array:
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)
