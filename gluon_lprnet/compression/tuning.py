"""Tuning with the original network as teacher: photos are enough, and labels can be added."""
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import mxnet as mx
import numpy as np
from mxnet import gluon
from mxnet.gluon import Block, HybridBlock

from ..data.batches import Batch
from ..data.classes import outputs_of
from ..train.face import LOSSES
from ..train.loop import TrainingTask
from ..utils.errors import InputError
from ..utils.files import PathLike, write_file

__all__ = ['Agreement', 'Best', 'Distance', 'as_teacher', 'distill', 'distill_landmarks', 'distillation_loss']


def distillation_loss(temperature: float = 4.0, labels: bool = False) -> Callable:
    """The loss of Hinton et al. 2015 (arXiv 1503.02531), section 2.

    ``T^2`` times the Kullback-Leibler divergence of the softened outputs ``softmax(z / T)`` from the teacher's; with
    ``labels`` half of it, plus half the cross entropy with the label.

    Parameters
    ----------
    temperature : float
        T.
    labels : bool

    Returns
    -------
    callable
        (outputs (N, classes), targets (N, 1 + classes)) to losses (N,): NDArrays, where the targets are a label and
        the teacher's outputs, as :func:`distill` puts them together.
    """
    hard = gluon.loss.SoftmaxCrossEntropyLoss()
    soft = gluon.loss.KLDivLoss(from_logits=False)

    def loss(outputs, targets):
        label, taught = targets[:, 0], targets[:, 1:]
        divergence = temperature ** 2 * soft(outputs / temperature, mx.nd.softmax(taught / temperature))
        return 0.5 * hard(outputs, label) + 0.5 * divergence if labels else divergence
    return loss


def distill(task: TrainingTask, teacher: Callable, temperature: float = 4.0, labels: bool = False) -> TrainingTask:
    """A training that learns from a teacher's outputs.

    Parameters
    ----------
    task : gluon_lprnet.train.loop.TrainingTask
        Of classification, with labels (N,).
    teacher : callable
        A network from the same data to the same classes, on the first of the task's contexts; of another one makes
        :func:`as_teacher` such.
    temperature : float
        See :func:`distillation_loss`.
    labels : bool
        Learn from the labels too. Without, they are not looked at, and the task counts how often the network names the
        teacher's class, under ``agreement``.

    Returns
    -------
    gluon_lprnet.train.loop.TrainingTask
    """
    def batches(epoch, start):
        for (data, label), taught in _taught(task, teacher, epoch, start):
            label = label.as_in_context(taught.context).astype('float32', copy=False)
            yield Batch(data, mx.nd.concat(label.expand_dims(1), taught, dim=1))

    def count(outputs, targets):
        if labels:
            return task.count(outputs, targets[:, 0])
        return {'agreement': int((outputs.argmax(axis=1) == targets[:, 1:].argmax(axis=1)).sum())}

    return replace(task, batches=batches, loss=distillation_loss(temperature, labels), count=count)


def distill_landmarks(task: TrainingTask, teacher: Callable) -> TrainingTask:
    """A training that learns a teacher's landmarks: the sum of smooth L1 losses, and no labels.

    Parameters
    ----------
    task : gluon_lprnet.train.loop.TrainingTask
        Of landmarks.
    teacher : callable
        A network from the same data to the same outputs, on the first of the task's contexts.

    Returns
    -------
    gluon_lprnet.train.loop.TrainingTask
        It reports the mean ``distance`` of a point from the teacher's: see :class:`Distance`.
    """
    def batches(epoch, start):
        for (data, _), taught in _taught(task, teacher, epoch, start):
            yield Batch(data, taught)

    return replace(task, batches=batches,
                   loss=lambda outputs, taught: LOSSES['smooth-l1'](outputs - taught).sum(axis=1),
                   count=lambda outputs, taught: {'distance': float(_distances(outputs, taught).sum())})


def _taught(task, teacher, epoch, start):
    for batch in task.batches(epoch, start):
        yield batch, teacher(batch[0].as_in_context(task.contexts[0]))


def _distances(outputs, expected):
    """Of each face the mean distance of its points, for outputs (N, 2 P)."""
    return np.linalg.norm((outputs - expected).reshape(len(outputs), -1, 2), axis=2).mean(axis=1)


def as_teacher(net: Callable, description: Mapping[str, Any], student: Mapping[str, Any], source: PathLike) -> Callable:
    """A network as a teacher of one that sees images otherwise, or knows some of its classes, or in another order.

    Parameters
    ----------
    net : HybridBlock
    description, student : dict
        Of the teacher and the student: ``input_size``, ``rgb_mean``, ``rgb_std``, ``num_classes``, and ``class_names``
        where they are known.
    source : path
        The teacher's, for the message.

    Returns
    -------
    callable
        The student's images, normalized, to the teacher's outputs for the student's classes: NDArrays.

    Raises
    ------
    InputError
        If the teacher does not know a class, or without names if it has another number of classes.
    """
    try:
        outputs = outputs_of(dict(description), student.get('class_names'), source)
    except InputError as error:
        raise InputError(f'{source} does not know all classes of the network to compress: take another '
                         'teacher.') from error
    if outputs is None and description['num_classes'] != student['num_classes']:
        raise InputError(f'{source} has {description["num_classes"]} classes, and the network to compress '
                         f'{student["num_classes"]}: take a teacher of the same, or give both their names.')
    size = description['input_size']
    (mean, std), (own_mean, own_std) = (
        [mx.nd.array(each[key]).reshape((1, 3, 1, 1)) for key in ('rgb_mean', 'rgb_std')]
        for each in (student, description))

    def taught(images):
        images = (images.astype('float32') * std + mean - own_mean) / own_std
        if images.shape[2:] != (size, size):
            images = mx.nd.contrib.BilinearResize2D(images, height=size, width=size)
        found = net(images)
        return found if outputs is None else found.take(mx.nd.array(outputs), axis=1)

    return taught


class Agreement:
    """On which share of some images networks on the CPU name the class that a teacher names.

    Parameters
    ----------
    teacher : callable
        As of :func:`distill`.
    batches : callable
        Without arguments, to an iterable of (data, label), the same each time.
    """

    def __init__(self, teacher: Callable, batches: Callable[[], Iterable]) -> None:
        self._batches = batches
        self._expected = _outputs(teacher, batches()).argmax(axis=1)

    def of(self, net: HybridBlock) -> float:
        """The share for a network, 0 to 1; ArithmeticError if it gives NaN or infinite outputs."""
        return float((_outputs(net, self._batches()).argmax(axis=1) == self._expected).mean())


class Distance:
    """How far landmarks are from those of a teacher, on some faces.

    Parameters
    ----------
    teacher, batches
        As of :class:`Agreement`.
    """

    def __init__(self, teacher: Callable, batches: Callable[[], Iterable]) -> None:
        self._batches = batches
        self._expected = _outputs(teacher, batches())

    def of(self, net: HybridBlock) -> float:
        """For a network the mean over points and faces, in sides of the crop; ArithmeticError as of Agreement."""
        return float(_distances(_outputs(net, self._batches()), self._expected).mean())


def _outputs(net, batches):
    # Batches may be in memory of another kind, which MXNet does not take for the CPU's.
    found = np.concatenate([net(data.as_in_context(mx.cpu())).asnumpy() for data, _ in batches])
    if not np.isfinite(found).all():
        raise ArithmeticError('the network returns NaN or infinite outputs')
    return found


class Best:
    """The parameters of a network when its score was highest, kept in a file: a resumed training finds them there.

    Parameters
    ----------
    net : Block
    path : path
        Of the file; what it holds already is taken as the best so far.

    Raises
    ------
    InputError
        If it holds the parameters of another network.
    """

    _SCORE = 'score'

    def __init__(self, net: Block, path: Path) -> None:
        self._net, self._path, self.score = net, path, -np.inf
        if path.exists():
            found = mx.nd.load(str(path))
            self.score = float(found.pop(self._SCORE).asscalar())
            if _shapes(found) != _shapes(self._values()):
                raise InputError(f'{path} holds the parameters of another network: remove it.')

    def offer(self, score: float) -> None:
        """Keep the network as it is, if its score is above that of the best so far."""
        if score > self.score:
            self.score = score
            # In double precision: of two scores that are equal the first is kept, after a resume too.
            values = {self._SCORE: mx.nd.array([score], dtype='float64'), **self._values()}
            write_file(self._path, lambda scratch: mx.nd.save(str(scratch), values))

    def take(self) -> None:
        """Give the network the parameters of the best; it stays as it is if there is none."""
        if self._path.exists():
            values = mx.nd.load(str(self._path))
            for name, parameter in self._net._collect_params_with_prefix().items():
                parameter.set_data(values[name])

    def _values(self):
        return {name: parameter.data(parameter.list_ctx()[0])
                for name, parameter in self._net._collect_params_with_prefix().items()}


def _shapes(values):
    return {name: value.shape for name, value in values.items()}
