"""A whole training in PyTorch by one of this program's recipes, to compare accuracies."""

import torch
from peers import torch_network as common
from peers.torch_resident import augment
from torch.nn import functional
from torch.optim import swa_utils


def train(data, config, seed):
    """Trains with batch norm and averaged weights; returns the test accuracy after the last epoch.

    Args:
      data: The arrays `train_images`, `train_labels`, `test_images` and `test_labels`.
      config: A config of this program, of which the fields are read that the recipe sets.
      seed: Of everything random.
    """
    torch.manual_seed(seed)
    train_images, train_labels, test_images, test_labels = common.tensors(data)
    network = common.make_network().to(memory_format=torch.channels_last)
    average = swa_utils.AveragedModel(
        network, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(config.ema), use_buffers=True
    )
    steps = len(train_labels) // config.batch_size
    rate = config.learning_rate, config.momentum, config.nesterov
    optimizer, schedule = common.make_optimizer(
        network, steps * config.epochs, *rate, weight_decay=config.l2
    )

    @torch.compile
    def loss_of(images, labels):
        x = augment(images, config.rotation, config.shift, config.scale, config.shear)
        return functional.cross_entropy(
            network(x.contiguous(memory_format=torch.channels_last)), labels
        )

    for _ in range(config.epochs):
        order = torch.randperm(len(train_labels))[: steps * config.batch_size]
        for index in order.view(steps, -1):
            loss_of(train_images[index], train_labels[index]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            average.update_parameters(network)
    average.eval()
    with torch.no_grad():
        batches = test_images.split(common.EVALUATION_BATCH)
        logits = torch.cat([average(common.normalized(images)) for images in batches])
    return (logits.argmax(1) == test_labels).float().mean().item()
