"""The running average of a training's weights, which often ranks better than they do.

An exponential moving average, as in Polyak and Juditsky (1992) with a decay, without their start:
it is divided by the sum of its shares (the correction of Adam's moments, Kingma and Ba 2015), so
that the initial weights have none, and the first steps of a training are averaged like all others.
"""

from torch import Tensor, nn


def add_to_average(average: nn.Module, module: nn.Module, *, decay: float, steps: int) -> None:
    """Take the weights of one more step into an average of their kind, in place.

    After `steps` calls the average is sum_i decay^(steps - i) w_i / sum_i decay^(steps - i) over
    the weights w_1 .. w_steps.

    Args:
        average: the average of the steps before; before the first step anything.
        module: the weights of this step; parameters of the same shapes.
        decay: in [0, 1).
        steps: which step this is, from 1.
    """
    share = (1 - decay) / (1 - decay**steps)
    for mean, weight in zip(_weights(average), _weights(module), strict=True):
        mean.lerp_(weight, share)


def _weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in module.parameters()]
