"""One step of a training: the loss of a batch, its gradient, and what the optimizer makes of it."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.config import ModelConfig, TrainingConfig
from models.packing import Indices, PackedBatch, TrainingWindows
from models.processes import Processes
from models.recommender import Recommender
from models.scan import PackedLayout
from models.training.loss import cross_entropy
from models.training.sampled_loss import Negatives, NegativeSampler, sampled_cross_entropy
from models.transfers import to_device


def create_optimizer(recommender: Recommender, training: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW over every parameter.

    Biases and layer norms are not decayed, nu, theta and gamma are, as in the authors' code.
    """
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in recommender.named_parameters():
        (free if "bias" in name or "norm" in name else decayed).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": training.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        eps=training.adam_epsilon,
        fused=True,
    )


def negative_sampler(
    config: ModelConfig, training: TrainingConfig, windows: TrainingWindows
) -> NegativeSampler | None:
    """Return what draws the items to score against; None where all are."""
    draws = training.sampled_negatives
    if draws is None or draws >= config.n_items:
        return None
    return NegativeSampler(np.bincount(windows.events, minlength=config.n_items + 1), draws)


def batch_loss(
    recommender: Recommender,
    batch: PackedBatch,
    negatives: Negatives | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Tensor:
    """Return the mean loss over all positions of a batch, each of which has a label.

    Args:
        recommender: the model.
        batch: the positions.
        negatives: what labels are scored against, on any device; None: every item.
        precision: what feed-forward layers and scores are multiplied in, for float32 weights.
    """
    products = torch.bfloat16 if precision == "bf16" else None
    device = recommender.item_embedding.device
    layout = PackedLayout.from_lengths(torch.from_numpy(batch.lengths))
    # The loss is a mean: the order of its rows is free, and time-major needs no way back.
    items, labels = (
        to_device(torch.from_numpy(array)[layout.to_time_major], device)
        for array in (batch.items, batch.labels)
    )
    with torch.autocast(device.type, products, enabled=products is not None):
        outputs = recommender.forward_time_major(items, layout)
    weight, bias = recommender.item_embedding, recommender.item_bias
    if negatives is None:
        return cross_entropy(outputs, weight, bias, labels, products=products)
    negatives = Negatives(*(to_device(part, device) for part in negatives))
    return sampled_cross_entropy(outputs, weight, bias, labels, negatives, products=products)


def take_gradient(
    recommender: Recommender,
    windows: TrainingWindows,
    chosen: Indices,
    negatives: Negatives | None,
    processes: Processes,
    precision: Literal["fp32", "bf16"],
) -> Tensor:
    """Put the gradient of a batch's mean loss into the parameters, and return that loss.

    Every process goes through its share of the batch. The mean is over the labels of the whole
    batch: a share counts by its labels, and one without any counts nothing.

    Args:
        recommender: the model, without gradients.
        windows: all training windows.
        chosen: those of the batch, the same for every process.
        negatives: what labels are scored against, the same for every process; None: every item.
        processes: those that share the work.
        precision: as in `batch_loss`.
    """
    share = windows.batch(windows.share(chosen, processes.rank, processes.count))
    if processes.count == 1:
        loss = batch_loss(recommender, share, negatives, precision)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss.detach()
    loss = recommender.item_bias.new_zeros(())
    if share.labels.size:
        weight = share.labels.size / int(windows.counts[chosen].sum())
        loss = batch_loss(recommender, share, negatives, precision) * weight
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return _add_up_gradients(recommender, loss.detach(), processes)


def _add_up_gradients(module: nn.Module, loss: Tensor, processes: Processes) -> Tensor:
    """Sum the gradients and the loss over the processes, in one message; return the loss."""
    parameters = list(module.parameters())
    for parameter in parameters:
        if parameter.grad is None:  # this share had no labels
            parameter.grad = torch.zeros_like(parameter)
    parts = [parameter.grad for parameter in parameters] + [loss]
    flat = torch.cat([part.reshape(-1) for part in parts if part is not None])
    processes.add_up(flat)
    *gradients, loss = torch.split(flat, [*(one.numel() for one in parameters), 1])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.view_as(parameter)
    return loss.squeeze(0).clone()  # a view would keep all gradients as long as it is kept
