"""The training of CondenseNet (arXiv 1711.09224): its condensing stages and the group lasso in the loss."""
import dataclasses

from ..zoo.condensenet import CondenseNet
from .config import NetworkTrainingConfig
from .loop import TrainingTask
from .training_form import steps_in_training_form


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
    steps = steps_in_training_form(task, config, 'condensing', 'which channels it reads',
                                   'its first half has the stages')
    if steps is None:
        return task

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
