"""Ghost batch norm in float64, and what float32 may differ from it."""

import numpy as np
from rounding import Rounded, concatenate, exact


def inference(variables, x, epsilon=1e-5):
    params, stats = variables["params"], variables["batch_stats"]
    hat = (exact(x) - stats["mean"]) / (exact(stats["var"]) + epsilon).sqrt()
    return hat * params["scale"] + params["bias"]


class Reference:
    """Channels-last ghost batch norm, one ghost batch at a time."""

    def __init__(
        self, variables, x, size, momentum=0.99, epsilon=1e-5, mask=None, use_fast_variance=True
    ):
        self.gamma, self.beta = (exact(variables["params"][k]) for k in ("scale", "bias"))
        self.running = [exact(variables["batch_stats"][k]) for k in ("mean", "var")]
        self.momentum = momentum
        self.fast = use_fast_variance
        self.axes = tuple(range(np.ndim(x) - 1))
        mask = np.broadcast_to(True if mask is None else mask, np.shape(x))
        self.batch = Rounded(x), mask
        number = -(-len(x) // size)
        self.masks = np.array_split(mask, number)
        self.counts = [m.sum(self.axes) for m in self.masks]
        self.hats, self.statistics, self.multipliers = [], [], []
        for part, mask in zip(np.array_split(x, number), self.masks, strict=True):
            ghost = Rounded(part)
            mean, var = self._statistics(ghost, mask)
            multiplier = 1 / (var + epsilon).sqrt()
            # The layer computes the former, which loses digits if a mean is far from 0.
            fast_hat, hat = ghost * multiplier - mean * multiplier, (ghost - mean) * multiplier
            self.hats.append(fast_hat if self.fast else hat)
            self.statistics.append((mean, var))
            self.multipliers.append(multiplier)

    def _statistics(self, x, mask):
        """Mean and biased variance of the entries that the mask keeps, 0 if there are none."""
        count = np.maximum(mask.sum(self.axes), 1)
        mean = (x * mask).sum(self.axes) / count
        if self.fast:
            return mean, (x.abs_sq() * mask).sum(self.axes) / count - mean.abs_sq()
        return mean, ((x - mean).abs_sq() * mask).sum(self.axes) / count

    def output(self):
        return concatenate([h * self.gamma + self.beta for h in self.hats])

    def gradients(self, cotangent):
        """Of sum(cotangent * output): to x, scale and bias (Ioffe and Szegedy 2015, section 3)."""
        cotangent, start = exact(cotangent), 0
        dx, dgamma = [], []
        for h, multiplier, mask, count in zip(
            self.hats, self.multipliers, self.masks, self.counts, strict=True
        ):
            dy = cotangent[start : start + len(mask)]
            start += len(mask)
            dh = self.gamma * dy
            of_statistics = dh.sum(self.axes) + h * (dh * h).sum(self.axes)
            dx.append((dh - of_statistics * mask / np.maximum(count, 1)) * multiplier)
            dgamma.append(h * dy)
        return concatenate(dx), concatenate(dgamma).sum(self.axes), cotangent.sum(self.axes)

    def updated(self, rule):
        """The running mean and variance after one training step."""
        total = sum(self.counts)
        results = []
        for old, ghosts, whole in zip(
            self.running, zip(*self.statistics, strict=True), self._statistics(*self.batch),
            strict=True,
        ):  # fmt: skip
            if rule == "sequential":
                for count, new in zip(self.counts, ghosts, strict=True):
                    old = self._decayed(old, new, count)
                results.append(old)
            else:
                average = sum(s * count for s, count in zip(ghosts, self.counts, strict=True))
                new = whole if rule == "pooled" else average / np.maximum(total, 1)
                results.append(self._decayed(old, new, total))
        return results

    def _decayed(self, old, new, count):
        decay = np.where(count > 0, self.momentum, 1)
        return old * decay + new * (1 - decay)
