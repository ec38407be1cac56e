"""The optimiser: L1 and L2 decay, then momentum SGD with a schedule, as one optax chain."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def add_l1_decay(
    l1_decay: optax.ScalarOrSchedule,
    mask: Any | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformation:
    r"""Adds the gradient of an L1 penalty to the updates.

    `u <- u + l1_decay * sign(p)`, the (sub)gradient of `l1_decay * sum |p|`, with 0 at `p = 0`.
    The counterpart of `optax.add_decayed_weights`, which does the same for `l2/2 * sum p^2`.

    Args:
      l1_decay: The strength: a scalar, which may be traced, or a schedule of it over steps.
      mask: A tree of booleans with the structure of the parameters (or a prefix of it), or a
        function of the parameters that returns one: `True` where the penalty applies. None
        applies it everywhere.

    Returns:
      An `optax.GradientTransformation` whose `update` needs the parameters.

    Raises:
      ValueError: Raised by `update` if the parameters are not given.

    Example::

        >>> import jax.numpy as jnp, optax
        >>> from jax_mnist import add_l1_decay
        >>> params = {"w": jnp.array([2.0, -3.0, 0.0])}
        >>> optimizer = optax.chain(add_l1_decay(0.5), optax.sgd(0.1))
        >>> updates, _ = optimizer.update({"w": jnp.zeros(3)}, optimizer.init(params), params)
        >>> updates["w"]
        Array([-0.05,  0.05, -0.  ], dtype=float32)

    References:
      Tibshirani, "Regression shrinkage and selection via the lasso", 1996.
    """

    def init(params: optax.Params) -> optax.OptState:
        del params
        if callable(l1_decay):
            return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("add_l1_decay needs the parameters: call update(grads, state, params)")
        if callable(l1_decay):
            strength = l1_decay(state.count)
            state = optax.ScaleByScheduleState(count=optax.safe_increment(state.count))
        else:
            strength = l1_decay
        updates = jax.tree.map(
            lambda u, p: None if u is None else u + (strength * jnp.sign(p)).astype(u.dtype),
            updates,
            params,
            is_leaf=lambda u: u is None,
        )
        return updates, state

    transformation = optax.GradientTransformation(init, update)
    return transformation if mask is None else optax.masked(transformation, mask)


def make_schedule(name: str, peak: ArrayLike, steps: int) -> optax.Schedule:
    """A learning-rate schedule over a run of `steps` steps.

    Args:
      name: One of `'constant'`; `'step'`, a tenth of the peak from half of the run on and a
        hundredth from three quarters on (as He et al., arXiv:1512.03385, for CIFAR); `'cosine'`,
        from `peak` to 0 (Loshchilov and Hutter, arXiv:1608.03983); or `'one_cycle'`, up from
        `peak / 25` over the first 30 % of the run and down to `peak / 250,000` (Smith and Topin,
        arXiv:1708.07120, in PyTorch's and optax's cosine form).
      peak: The highest learning rate; may be traced.
      steps: Length of the run, at least 1.

    Returns:
      A function of the step, counted from 0.

    Raises:
      ValueError: The name is not one of these.
    """
    match name:
        case "constant":
            shape = optax.constant_schedule(1.0)
        case "step":
            shape = optax.piecewise_constant_schedule(1.0, {steps // 2: 0.1, steps * 3 // 4: 0.1})
        case "cosine":
            shape = optax.cosine_decay_schedule(1.0, steps)
        case "one_cycle":
            shape = optax.cosine_onecycle_schedule(steps, 1.0, pct_start=0.3)
        case _:
            raise ValueError(f"unknown schedule {name!r}")
    return lambda step: peak * shape(step)


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    l1: ArrayLike = 0.0,
    l2: ArrayLike = 0.0,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """SGD on `loss + l1 * sum |p| + l2/2 * sum p^2`, over all parameters.

    The penalties enter by their gradients and before momentum, as in `torch.optim.SGD` with
    `weight_decay=l2`. Every number may be traced, so that one compiled step serves all strengths.

    Args:
      learning_rate: A scalar or a schedule.
      l1: Strength of the L1 penalty.
      l2: Strength of the L2 penalty.
      momentum: Decay of the accumulated gradient.
      nesterov: Whether to use Nesterov's momentum.

    Returns:
      An `optax.GradientTransformation` whose `update` needs the parameters.
    """
    return optax.chain(
        add_l1_decay(l1),
        optax.add_decayed_weights(l2),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )
