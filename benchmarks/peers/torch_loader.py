"""The original's way: a `Dataset`, transforms of one image at a time, a `DataLoader`, eager.

The transforms are torchvision's of these names, which on Pillow images call the same functions.
"""

import os
import random

import numpy as np
import torch
from peers import torch_network as common
from PIL import Image, ImageEnhance
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler


def color_jitter(image, brightness=0.1, contrast=0.1):
    changes = [
        (ImageEnhance.Brightness, random.uniform(1 - brightness, 1 + brightness)),
        (ImageEnhance.Contrast, random.uniform(1 - contrast, 1 + contrast)),
    ]
    random.shuffle(changes)
    for enhance, factor in changes:
        image = enhance(image).enhance(factor)
    return image


class Images(Dataset):
    def __init__(self, images, labels, train):
        self.images, self.labels, self.train = images[..., 0], labels, train

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index])
        if self.train:
            image = color_jitter(image).rotate(random.uniform(-7, 7), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(image)).float().div(255)
        return x.sub(common.MEAN).div(common.STD)[None], int(self.labels[index])


def prepare(data, steps):
    """See `benchmark.PROGRAMS`."""
    where = common.device()
    pin, workers = where.type == "cuda", min(4, os.cpu_count())
    options = {"num_workers": workers, "persistent_workers": True, "pin_memory": pin}
    train = Images(data["train_images"], data["train_labels"], True)
    test = Images(data["test_images"], data["test_labels"], False)
    sampler = RandomSampler(train, num_samples=steps * common.BATCH)
    train_loader = DataLoader(train, common.BATCH, sampler=sampler, drop_last=True, **options)
    test_loader = DataLoader(test, common.EVALUATION_BATCH, **options)
    network = common.make_network().to(where)
    optimizer, schedule = common.make_optimizer(network, steps * common.EPOCHS, fused=False)

    def train_batch(x, y):
        x, y = x.to(where, non_blocking=True), y.to(where, non_blocking=True)
        optimizer.zero_grad()
        logits = network(x)
        loss = functional.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.item(), (logits.argmax(1) == y).sum().item()  # as one does for a progress bar

    def first_step():
        train_batch(*next(iter(train_loader)))

    def epoch():
        network.train()
        for x, y in train_loader:
            train_batch(x, y)
        network.eval()
        correct = 0
        with torch.no_grad():
            for x, y in test_loader:
                correct += (network(x.to(where)).argmax(1) == y.to(where)).sum().item()
        return correct / len(test)

    return first_step, epoch
