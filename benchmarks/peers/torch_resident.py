"""The fastest PyTorch that we know to write: data on the device, augmented by batches, compiled."""

import math

import torch
from peers import torch_network as common
from torch.nn import functional


def augment(images, rotation=7, shift=0, scale=0, shear=0):
    """Jitter 0.1, an affine map and normalisation of uint8 `[batch, 1, 28, 28]`.

    Largest rotation and shear in degrees, shift in pixels; scale factors are `1 ± scale`.
    """
    x = images.float().div(255)
    n = len(x)
    brightness, contrast = (
        torch.empty(n, 1, 1, 1, device=x.device).uniform_(0.9, 1.1) for _ in range(2)
    )

    def with_contrast(x):
        return (contrast * x + (1 - contrast) * x.mean((1, 2, 3), keepdim=True)).clamp(0, 1)

    x = torch.where(
        torch.rand(n, 1, 1, 1, device=x.device) < 0.5,
        with_contrast((x * brightness).clamp(0, 1)),
        (with_contrast(x) * brightness).clamp(0, 1),
    )
    turned, slanted, right, down, grown = torch.empty(5, n, device=x.device).uniform_(-1, 1)
    angle, slant = math.radians(rotation) * turned, torch.tan(math.radians(shear) * slanted)
    cos, sin, factor = angle.cos(), angle.sin(), 1 + scale * grown
    # From places in the result, in x and y, to places in the image; half a side is 1.
    linear = torch.stack([cos - slant * sin, sin + slant * cos, -sin, cos], 1).view(n, 2, 2)
    linear = linear / factor.view(n, 1, 1)
    offset = torch.stack([right, down], 1).unsqueeze(2) * (2 * shift / (x.shape[-1] - 1))
    theta = torch.cat([linear, -linear @ offset], 2)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=True)
    x = functional.grid_sample(x, grid, "bilinear", "zeros", align_corners=True)
    return (x - common.MEAN) / common.STD


def prepare(data, steps, compiled=False, channels_last=False):
    """See `benchmark.PROGRAMS`."""
    where = common.device()
    if where.type == "cuda":  # as JAX does by default
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    train_images, train_labels, test_images, test_labels = common.tensors(data, where)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    network = common.make_network().to(where, memory_format=memory)
    optimizer, schedule = common.make_optimizer(network, steps * common.EPOCHS, fused=True)

    def loss_of(images, labels):
        x = augment(images).contiguous(memory_format=memory)
        logits = network(x)
        correct = (logits.argmax(1) == labels).sum()
        return functional.cross_entropy(logits, labels), correct

    def predict(images):
        x = common.normalized(images).contiguous(memory_format=memory)
        return network(x).softmax(1)

    if compiled:
        mode = "max-autotune" if where.type == "cuda" else "default"
        loss_of = torch.compile(loss_of, mode=mode)
        predict = torch.compile(predict, mode=mode)

    def train_batch(index):
        loss, correct = loss_of(train_images[index], train_labels[index])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.detach().clone(), correct.clone()

    def first_step():
        train_batch(torch.randperm(len(train_labels), device=where)[: common.BATCH])[0].item()

    def epoch():
        network.train()
        order = torch.randperm(len(train_labels), device=where)[: steps * common.BATCH]
        metrics = [train_batch(index) for index in order.view(steps, -1)]
        losses, correct = (torch.stack(m).float().mean().item() for m in zip(*metrics, strict=True))
        assert math.isfinite(losses + correct)
        network.eval()
        with torch.no_grad():
            probabilities = torch.cat(
                [predict(x).cpu() for x in test_images.split(common.EVALUATION_BATCH)]
            )
        return (probabilities.argmax(1) == test_labels.cpu()).float().mean().item()

    return first_step, epoch
