"""Distillation: the outputs of the original network become part of the labels, so any training loop can use them."""
from dataclasses import replace

import mxnet as mx
from mxnet import gluon

from ..data.batches import Batch

__all__ = ['distill', 'distillation_loss']


def distillation_loss(temperature=4.0):
    """The loss of Hinton et al. 2015 (arXiv 1503.02531), section 2, with equal weights.

    Half the cross entropy with the label, plus half ``T^2`` times the Kullback-Leibler divergence of the softened
    outputs ``softmax(z / T)`` from the teacher's.

    Parameters
    ----------
    temperature : float
        T.

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
        divergence = soft(outputs / temperature, mx.nd.softmax(taught / temperature))
        return 0.5 * hard(outputs, label) + 0.5 * temperature ** 2 * divergence
    return loss


def distill(task, teacher, temperature=4.0):
    """A training that learns from the labels and from a teacher's outputs.

    Parameters
    ----------
    task : gluon_lprnet.train.loop.TrainingTask
        Of classification, with labels (N,).
    teacher : HybridBlock
        From the same data to the same classes, on the first of the task's contexts.
    temperature : float
        See :func:`distillation_loss`.

    Returns
    -------
    gluon_lprnet.train.loop.TrainingTask
    """
    def batches(epoch, start):
        for data, label in task.batches(epoch, start):
            taught = teacher(data.as_in_context(task.contexts[0]))
            label = label.as_in_context(taught.context).astype('float32', copy=False)
            yield Batch(data, mx.nd.concat(label.expand_dims(1), taught, dim=1))

    return replace(task, batches=batches, loss=distillation_loss(temperature),
                   count=lambda outputs, targets: task.count(outputs, targets[:, 0]))
