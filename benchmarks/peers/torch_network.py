"""The network, its optimiser and what both PyTorch peers do alike."""

import torch
from torch import nn

# Kernel size, output channels and what follows: R(eLU), N(orm), max-P(ool), A(verage pool).
LAYERS = (
    (3, 10, "RN"), (3, 16, "RN"), (1, 10, "NRP"), (3, 10, "RN"), (1, 32, "NR"), (1, 10, "RN"),
    (3, 10, "RN"), (1, 32, "NR"), (1, 10, "RN"), (3, 14, "RN"), (3, 16, "RNA"), (1, 10, ""),
)  # fmt: skip
MEAN, STD = 0.1307, 0.3081
BATCH, EVALUATION_BATCH = 128, 1000
EPOCHS = 150  # more than are timed


def make_network():
    modules, channels = [], 1
    for size, features, then in LAYERS:
        modules += [nn.Conv2d(channels, features, size, bias=False)]
        channels = features
        for letter in then:
            simple = {"R": nn.ReLU(), "P": nn.MaxPool2d(2), "A": nn.AvgPool2d(4)}
            modules += [nn.BatchNorm2d(features) if letter == "N" else simple[letter]]
    network = nn.Sequential(*modules, nn.Flatten())
    assert sum(p.numel() for p in network.parameters()) == 8546
    return network


def make_optimizer(network, steps, lr=0.2, momentum=0.9, nesterov=True, **options):
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum, nesterov=nesterov, **options)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, steps, cycle_momentum=False
    )


def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tensors(data, where="cpu"):
    """Training images (uint8 `[n, 1, 28, 28]`) and labels, test images and labels."""
    for split in ("train", "test"):
        yield torch.from_numpy(data[f"{split}_images"]).to(where).permute(0, 3, 1, 2).contiguous()
        yield torch.from_numpy(data[f"{split}_labels"]).to(where).long()


def normalized(images):
    return (images.float() / 255 - MEAN) / STD
