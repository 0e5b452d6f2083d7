"""The training of irregular kernels: a relaxed choice of segments that hardens, then their weights alone."""
import dataclasses

from ..zoo.irregular import IrregularDenseNet40
from .config import NetworkTrainingConfig
from .loop import TrainingTask
from .training_form import steps_in_training_form

# A segment of 0.8 of the largest energy has a share of 3% then.
LAST_SHARPNESS = 16.0


def with_hardening(task: TrainingTask, config: NetworkTrainingConfig) -> TrainingTask:
    """The task with what ``config`` asks for of irregular kernels; of another network it is as it was.

    In the first half of the steps the sharpness of the choice rises from 0 to ``LAST_SHARPNESS`` in a line. In the
    middle each slice keeps one segment, whose weights the second half tunes. The course is our own: see
    :mod:`gluon_lprnet.zoo.irregular`.

    Raises
    ------
    InputError
        If the training is too short to harden, or would begin in the form for inference, where no segments are chosen
        yet.
    """
    net = task.net
    if not isinstance(net, IrregularDenseNet40):
        return task
    steps = steps_in_training_form(task, config, 'relaxed', 'its segments', 'the choice hardens in its first half')
    if steps is None:
        return task

    def begin_step(step):
        if 2 * step < steps:
            net.sharpen(LAST_SHARPNESS * 2 * step / steps)
        elif not net.chosen:
            net.harden()

    return dataclasses.replace(task, begin_step=begin_step)
