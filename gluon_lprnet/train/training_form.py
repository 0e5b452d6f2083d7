"""Networks that are trained in another form than the one that is deployed: what both of their trainings ask."""
import math
from typing import Optional

from ..utils.errors import InputError
from ..zoo.pretrained import split_tag
from .config import NetworkTrainingConfig
from .loop import TrainingTask


def steps_in_training_form(task: TrainingTask, config: NetworkTrainingConfig, form: str, learns: str,
                           first_half: str) -> Optional[int]:
    """The updates of a training in the form that the flag ``form`` asks for; None if it goes on in the other one.

    ``learns`` and ``first_half`` say in words what the form is for, and what becomes of it in the first half.

    Raises
    ------
    InputError
        If the training has fewer than two updates, or would begin from nothing in the form for inference.
    """
    if not getattr(config, form):
        if not config.init_from and split_tag(config.model)[1] is None:
            raise InputError(f'`model` {config.model} learns {learns} in its form for training alone: give `{form}`, '
                             'or trained weights by `init_from`.')
        return None
    steps = config.num_epochs * math.ceil(task.batches_per_epoch / config.accumulate)
    if steps < 2:
        raise InputError(f'`{form}` needs a training of two steps at least: {first_half}.')
    return steps
