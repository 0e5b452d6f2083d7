"""Networks for classes and for landmarks, as ``compress`` sees them: their images, their numbers, what they learn."""
import argparse
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, Callable, Optional, Union

import mxnet as mx
import numpy as np
from mxnet import gluon
from mxnet.gluon import Block, HybridBlock

from ..artifact import load_network, outputs_for, task_of
from ..data.batches import ImageBatches, Normalization, paper_augmentation, validation_batches
from ..data.classes import labels_of
from ..data.faces.batches import AUGMENTATIONS, FaceBatches
from ..data.faces.landmarks import CROP_SCALE
from ..data.faces.records import check_face_records, read_face_records
from ..data.images import BILINEAR, shorter_side
from ..data.integrity import check_records, fingerprint
from ..data.sample import sampled
from ..evaluate.classification import correct_in_top, described, evaluate_classification, flags_of_description
from ..evaluate.landmarks import evaluate_landmarks, load_landmark_network
from ..train.fast_form import rewrite
from ..train.loop import TrainingTask
from ..utils.errors import InputError
from .tuning import Agreement, Distance, as_teacher, distill, distill_landmarks

__all__ = ['Classification', 'Landmarks', 'load_task']

Numbers = dict[str, float]


class _Task:
    """What both have in common.

    Parameters
    ----------
    net : HybridBlock
        The original.
    description : dict
    args : argparse.Namespace
        The flags of ``compress``.

    Attributes
    ----------
    net, description
    input_shape : tuple of int
        Of one image, NCHW.
    outputs : int
        Of the network.
    """

    def __init__(self, net: HybridBlock, description: dict[str, Any], args: argparse.Namespace) -> None:
        self.net, self.description, self._args = net, description, args
        self.input_shape = _input_shape(description)
        self.outputs = outputs_for(net, mx.nd.zeros(self.input_shape), args.network).shape[1]

    def first_of_tuning(self, count: int) -> Iterator[mx.nd.NDArray]:
        """Batches of the images that a tuning begins with, as it sees them: ``count`` of them, or a few more."""
        for data, _ in itertools.islice(self._images_to_tune_on().epoch(0), math.ceil(count / self._args.batch_size)):
            yield data

    def _images_to_tune_on(self):
        raise NotImplementedError


class Classification(_Task):
    """A classifier and its photos."""

    def __init__(self, net: HybridBlock, description: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(net, described(args.network, description, flags_of_description(args)), args)
        self._teacher = self._other_teacher() if args.teacher else _fast(net, self.input_shape)
        self._train, self._held_out, self._val = self._checked()

    @contextmanager
    def calibration(self) -> Iterator[Optional[Iterable]]:
        """As a context, the images to calibrate on; None if there are none."""
        args = self._args
        with sampled(args.calibrate, args.images, args.seed) if args.calibrate else nullcontext() as records:
            yield records and self._plain(records).epoch(0)

    def measured(self, net: HybridBlock) -> Numbers:
        """``agreement`` on ``--held-out``, ``top1`` and ``top5`` on ``--rec-val``: fractions."""
        nearness = {'agreement': self._agreement.of(net)} if self._held_out else {}
        return {**nearness, **(evaluate_classification(net, self._plain(self._val), mx.cpu()) if self._val else {})}

    def score(self, numbers: Numbers) -> Optional[float]:
        """How near a network is to the teacher, the higher the nearer; None where that is not measured."""
        return numbers.get('agreement')

    def tuning(self, net: Block, evaluate: Callable[[], Numbers]) -> TrainingTask:
        """Training ``net`` to give the teacher's outputs for ``--rec-train``."""
        return distill(_training(net, self._images_to_tune_on(), (self._train, self._held_out), evaluate,
                                 lambda outputs, label: {'top1': correct_in_top(outputs, label, 1)}),
                       self._teacher, self._args.temperature, self._args.labels)

    def _images_to_tune_on(self):
        args, size = self._args, self.description['input_size']
        return ImageBatches(self._train, size, args.batch_size,
                            Normalization(self.description['rgb_mean'], self.description['rgb_std']), shuffle=True,
                            resize=shorter_side(self.description), threads=args.num_data_workers, seed=args.seed,
                            augmentation=dict(paper_augmentation(args.pad, args.min_random_scale,
                                                                 mirror=not args.no_mirror),
                                              inter_method=self.description.get('inter_method', BILINEAR)),
                            labels=labels_of(self.description, self._train) if args.labels else None)

    def _other_teacher(self):
        source = self._args.teacher
        net, description = load_network(source)
        description = described(source, description, {})
        classes = net(mx.nd.zeros(_input_shape(description))).shape[1]
        return as_teacher(_fast(net, _input_shape(description)), dict(description, num_classes=classes),
                          dict(self.description, num_classes=self.outputs), source)

    def _checked(self):
        """What is known of the records that are read whole; a file of two flags is read once."""
        args = self._args
        given = (args.rec_train, args.held_out, args.rec_val)
        # Of photos alone, labels mean nothing.
        labeled = {args.rec_val, args.rec_train if args.labels else None}
        whole = [*given, args.calibrate if args.data_check == 'full' else None]
        found = {path: check_records(path, num_classes=self.outputs if path in labeled else None,
                                     data_check=args.data_check) for path in dict.fromkeys(filter(None, whole))}
        return [found.get(path) for path in given]

    @cached_property
    def _agreement(self):
        held_out = self._plain(self._held_out)
        return Agreement(self._teacher, lambda: held_out.epoch(0))

    def _plain(self, records):
        return validation_batches(records, self.description, self._args.batch_size, self._args.num_data_workers)


class Landmarks(_Task):
    """A network for facial landmarks, and faces; their own landmarks only place the crops and measure NME."""

    def __init__(self, net: HybridBlock, description: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(net, description, args)
        if args.labels:
            raise InputError('--labels is for classifiers: a landmark network learns from the teacher alone.')
        if flags_of_description(args):
            raise InputError(f'{args.network} says itself which crops it takes: leave out '
                             f'{", ".join("--" + key.replace("_", "-") for key in flags_of_description(args))}.')
        self._teacher = self._other_teacher() if args.teacher else _fast(net, self.input_shape)
        paths = (args.calibrate, args.rec_train, args.held_out, args.rec_val)
        _, *self._records_of_tuning, _ = [path and check_face_records(path, args.data_check) for path in paths]
        self._calibrate, self._train, self._held_out, self._val = (path and list(read_face_records(path))
                                                                   for path in paths)

    @contextmanager
    def calibration(self) -> Iterator[Optional[Iterable]]:
        """As a context, the faces to calibrate on; None if there are none."""
        faces = self._calibrate
        chosen = np.random.default_rng(self._args.seed).permutation(len(faces or ()))[:self._args.images]
        yield faces and self._batches([faces[index] for index in chosen]).epoch(0)

    def measured(self, net: HybridBlock) -> Numbers:
        """``distance`` from the teacher on ``--held-out``, and ``nme`` on ``--rec-val``: see :class:`Distance`."""
        nearness = {'distance': self._distance.of(net)} if self._held_out else {}
        return {**nearness, **({'nme': float(evaluate_landmarks(net, self._val, self.description).errors.mean())}
                               if self._val else {})}

    def score(self, numbers: Numbers) -> Optional[float]:
        """How near a network is to the teacher, the higher the nearer; None where that is not measured."""
        return -numbers['distance'] if 'distance' in numbers else None

    def tuning(self, net: Block, evaluate: Callable[[], Numbers]) -> TrainingTask:
        """Training ``net`` to give the teacher's outputs for ``--rec-train``."""
        return distill_landmarks(_training(net, self._images_to_tune_on(), self._records_of_tuning, evaluate),
                                 self._teacher)

    def _images_to_tune_on(self):
        return self._batches(self._train, AUGMENTATIONS['wild'])

    def _other_teacher(self):
        source = self._args.teacher
        net, description = load_landmark_network(source)
        outputs = net(mx.nd.zeros(_input_shape(description))).shape[1]
        crop_scale, own_scale = (each.get('crop_scale', CROP_SCALE) for each in (description, self.description))
        for key, theirs, own in (('outputs', outputs, self.outputs), ('crop_scale', crop_scale, own_scale)):
            if theirs != own:
                raise InputError(f'{source}: `{key}` is {theirs}, and {own} of the network to compress: take another '
                                 'teacher.')
        return as_teacher(_fast(net, _input_shape(description)), dict(description, num_classes=self.outputs),
                          dict(self.description, num_classes=self.outputs), source)

    @cached_property
    def _distance(self):
        held_out = self._batches(self._held_out)
        return Distance(self._teacher, lambda: held_out.epoch(0))

    def _batches(self, faces, augmentation=None):
        description, args = self.description, self._args
        return FaceBatches(faces, description['input_size'], description.get('crop_scale', CROP_SCALE),
                           args.batch_size, Normalization(description['rgb_mean'], description['rgb_std']),
                           augmentation, args.num_data_workers, args.seed, shuffle=augmentation is not None)


def load_task(args: argparse.Namespace) -> Union[Classification, Landmarks]:
    """The network that the flags name, with its records.

    Raises
    ------
    InputError
        If the network or a file is at fault, or if a teacher does not fit.
    """
    # Ranks are given and saved by layer name, and Gluon numbers the names by what the process has built before.
    with mx.name.NameManager():
        if task_of(args.network) == 'landmarks':
            return Landmarks(*load_landmark_network(args.network), args)
        return Classification(*load_network(args.network), args)


def _fast(net, input_shape):
    """A teacher that does not keep the tuning waiting: in faster operators, unless it is an ONNX file."""
    return rewrite(net, input_shape) if isinstance(net, HybridBlock) else net


def _training(net, images, records, evaluate, count=None):
    return TrainingTask(net=net, contexts=[mx.cpu()], batches=images.epoch, batches_per_epoch=len(images),
                        loss=gluon.loss.SoftmaxCrossEntropyLoss(), count=count, evaluate=evaluate,
                        data={f'{role} {each.path}': fingerprint(each)
                              for role, each in zip(('rec_train', 'held_out'), records) if each})


def _input_shape(description):
    return (1, 3, description['input_size'], description['input_size'])
