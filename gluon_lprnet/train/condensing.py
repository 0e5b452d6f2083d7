"""The training of CondenseNet (arXiv 1711.09224): its condensing stages and the group lasso in the loss."""
import dataclasses
import math

from ..utils.errors import InputError
from ..zoo.condensenet import CondenseNet
from ..zoo.pretrained import split_tag
from .config import NetworkTrainingConfig
from .loop import TrainingTask


def with_condensing(task: TrainingTask, config: NetworkTrainingConfig) -> TrainingTask:
    """The task with what ``config`` asks for of a CondenseNet; of another network it is as it was.

    Raises
    ------
    InputError
        If the training is too short for the stages, or would begin in the form for inference, where no channels are
        chosen yet.
    """
    net = task.net
    if not isinstance(net, CondenseNet):
        return task
    if not config.condensing:
        if not config.init_from and split_tag(config.model)[1] is None:
            raise InputError(f'`model` {config.model} learns which channels it reads in its form for training alone: '
                             'give `condensing`, or trained weights by `init_from`.')
        return task
    steps = config.num_epochs * math.ceil(task.batches_per_epoch / config.accumulate)
    if steps < 2:
        raise InputError('`condensing` needs a training of two steps at least: its first half has the stages.')

    def begin_step(step):
        while net.stages_left > stages_left(net.stages, step, steps):
            net.condense()

    def loss(output, label):
        return task.loss(output, label) + config.group_lasso * net.group_lasso(output.context)

    return dataclasses.replace(task, begin_step=begin_step, loss=loss if config.group_lasso else task.loss)


def stages_left(stages: int, step: int, steps: int) -> int:
    """Condensing stages that are still to come before update number ``step``, from 0, of ``steps``.

    They are at equal distances, the last one in the middle of the training (section 3.1).
    """
    return stages - min(stages, 2 * stages * step // steps)
