"""Accuracy of facial landmarks: NME by yaw, CED, failures ("Evaluation Metrics", Table 6 and Figure 4 of the paper)."""
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Optional, Union

import cv2
import mxnet as mx
import numpy as np
from mxnet.gluon.block import HybridBlock
from tqdm import tqdm

from ..artifact import load_network
from ..data.faces.landmarks import (
    CROP_SCALE,
    JAWS,
    ONE_JAW,
    POINTS,
    TWO_JAWS,
    box_size,
    crop_matrix,
    landmark_box,
    landmarks_in_crops,
    transform,
)
from ..data.faces.records import FaceRecord, check_face_records, read_face_records
from ..utils.errors import InputError

PathLike = Union[str, 'os.PathLike[str]']

# |yaw| in degrees. A bin includes its upper limit, and its lower one only if that is 0.
YAW_BINS = ((0, 30), (30, 60), (60, math.inf))
BIN_NAMES = ('[0,30]', '(30,60]', '>60')

# 7%, as in the paper of LS3D-W (Bulat and Tzimiropoulos, 2017), which normalizes by the same box. The LPRNet
# paper names none.
THRESHOLD = 0.07

PROTOCOL = ('NME: distance between predicted and true landmarks (x, y), mean over 68 points, over sqrt(width * height) '
            "of the true landmarks' box. That box also places the network's crop, as in the paper: no detector.")

MEAN_FACE = 'mean face'
_BATCH_SIZE = 64
_REQUIRED = ('input_size', 'rgb_mean', 'rgb_std')


class FaceErrors(NamedTuple):
    """Predictions for a set of faces, in its order.

    Attributes
    ----------
    names : list of str
    errors : ndarray (N,)
        NME of each face, as a fraction.
    yaw : ndarray (N,)
        In degrees; NaN where the set does not give it.
    predicted, truth : ndarray (N, 68, 2)
        In pixels of the data set's own images.
    """

    names: list[str]
    errors: np.ndarray
    yaw: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray


def normalized_mean_errors(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """NME of each face.

    Parameters
    ----------
    predicted, truth : ndarray (N, P, 2)
        In pixels of the same image.

    Returns
    -------
    ndarray (N,)
        Mean distance of the points over the square root of the area of the true landmarks' box.

    Raises
    ------
    ArithmeticError
        If a prediction is NaN or infinite: its error would be meaningless.
    ValueError
        If a box is empty.
    """
    predicted, truth = np.asarray(predicted, dtype='float64'), np.asarray(truth, dtype='float64')
    if not np.isfinite(predicted).all():
        raise ArithmeticError('the network returns NaN or infinite landmarks')
    sizes = box_size(landmark_box(truth))
    if not (sizes > 0).all():
        raise ValueError(f'the true landmarks of face {np.flatnonzero(~(sizes > 0))[0]} (counted from 0) have an '
                         'empty box')
    return np.linalg.norm(predicted - truth, axis=-1).mean(axis=-1) / sizes


def yaw_bins(yaw: np.ndarray) -> np.ndarray:
    """The index in :data:`YAW_BINS` of each yaw (N,) in degrees; -1 for NaN."""
    yaw = np.abs(np.asarray(yaw, dtype='float64'))
    return np.where(np.isnan(yaw), -1, np.searchsorted([upper for _, upper in YAW_BINS[:-1]], yaw))


def summarize(errors: np.ndarray, yaw: Optional[np.ndarray] = None, threshold: float = THRESHOLD) -> dict[str, Any]:
    """The numbers of one row of a table.

    Parameters
    ----------
    errors : ndarray (N,)
        NME as fractions.
    yaw : ndarray (N,), optional
        In degrees; NaN where unknown.
    threshold : float
        NME beyond which a face is a failure.

    Returns
    -------
    dict
        ``faces``, ``bin_faces`` and ``bin_nme`` (by :data:`YAW_BINS`; None where a bin is empty),
        ``mean_of_bins`` (the paper's "Mean"; None if a bin is empty), ``mean`` over all faces, ``median``,
        ``percentile_95``, ``threshold``, ``failure_rate``, and ``auc``, the area under the CED up to the
        threshold, at most 1.
    """
    errors = np.asarray(errors, dtype='float64')
    bins = yaw_bins(np.full(len(errors), np.nan) if yaw is None else yaw)
    members = [errors[bins == index] for index in range(len(YAW_BINS))]
    nme: list[Any] = [float(each.mean()) if each.size else None for each in members]
    return {
        'faces': len(errors), 'bin_faces': [each.size for each in members], 'bin_nme': nme,
        'mean_of_bins': None if None in nme else float(np.mean(nme)),
        'mean': float(errors.mean()), 'median': float(np.median(errors)),
        'percentile_95': float(np.percentile(errors, 95)), 'threshold': threshold,
        'failure_rate': float((errors > threshold).mean()),
        # A face adds a step of 1/N at its error: the rectangle from there to the threshold.
        'auc': float(np.maximum(threshold - errors, 0).mean() / threshold),
    }


def ced(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The exact cumulative error distribution: the corners of a step function.

    Parameters
    ----------
    errors : array (N,)

    Returns
    -------
    tuple of (ndarray, ndarray)
        Errors in ascending order, starting with 0, and the fraction of the faces with at most that error.
    """
    errors = np.asarray(errors, dtype='float64')
    corners = np.unique(np.append(errors, 0))
    return corners, np.searchsorted(np.sort(errors), corners, side='right') / len(errors)


def load_landmark_network(path: PathLike,
                          context: Optional[mx.Context] = None) -> tuple[HybridBlock, dict[str, Any]]:
    """Load a network for 68 landmarks with its description.

    Parameters
    ----------
    path : path
        As of :func:`gluon_lprnet.artifact.load_network`.
    context : mx.Context, optional

    Returns
    -------
    tuple of (HybridBlock, dict)

    Raises
    ------
    InputError
        If it is not a network, has no description, or does not have 136 or 170 outputs.
    """
    net, description = load_network(path, context)
    missing = [key for key in _REQUIRED if key not in description]
    if missing:
        raise InputError(f'{path}: its description lacks {", ".join(missing)}. Put the .json that the training wrote '
                         'next to the -symbol.json.')
    size = description['input_size']
    outputs = net(mx.nd.zeros((1, 3, size, size), ctx=context or mx.cpu())).shape[1]
    if outputs not in (ONE_JAW, TWO_JAWS):
        raise InputError(f'{path} is not a network for {POINTS} landmarks: it has {outputs} outputs, not {ONE_JAW}, or '
                         f'{TWO_JAWS} for two jaws. Train one with train_face.py.')
    return net, description


def predict_landmarks(net: HybridBlock, description: Mapping[str, Any], faces: Sequence[tuple[np.ndarray, np.ndarray]],
                      context: Optional[mx.Context] = None, jaws: Union[str, Sequence[str]] = '3d',
                      dtype: str = 'float32', flip: bool = False) -> np.ndarray:
    """Predict the landmarks of faces.

    Parameters
    ----------
    net : HybridBlock
    description : dict
        With ``input_size``, ``rgb_mean``, ``rgb_std``, and ``crop_scale`` where it is not the default.
    faces : sequence of (ndarray (height, width, 3) uint8, array (4,))
        RGB images, each with the box of its landmarks: left, top, right, bottom.
    context : mx.Context, optional
    jaws : str or sequence of str
        Of :data:`gluon_lprnet.data.faces.landmarks.JAWS`, for all faces or for each: what networks of two jaws answer.
    dtype : str
        Of the network's input.
    flip : bool
        The mean of this and of what the network finds in the crop flipped left to right (test-time augmentation).

    Returns
    -------
    ndarray (N, 68, 2)
        In pixels of the images.
    """
    size, scale = description['input_size'], description.get('crop_scale', CROP_SCALE)
    crops = [(picture, crop_matrix(box, size, scale)) for picture, box in faces]
    def network(data):
        # Cast before asnumpy, which returns bfloat16 as raw bits.
        return net(mx.nd.array(data, context or mx.cpu(), dtype)).astype('float32', copy=False).asnumpy()

    found = landmarks_in_crops(network, description, crops)
    if flip:
        found = (found + landmarks_in_crops(network, description, crops, mirrored=True)) / 2
    jaws = [jaws] * len(faces) if isinstance(jaws, str) else jaws
    return found[np.arange(len(faces)), [JAWS.index(jaw) for jaw in jaws]]


def evaluate_landmarks(net: HybridBlock, records: Iterable[FaceRecord], description: Mapping[str, Any],
                       context: Optional[mx.Context] = None, batch_size: int = _BATCH_SIZE,
                       jaw: Optional[str] = None, dtype: str = 'float32', flip: bool = False) -> FaceErrors:
    """Errors of a network on a set of faces.

    Parameters
    ----------
    net : HybridBlock
    records : iterable of FaceRecord
    description : dict
        As of :func:`predict_landmarks`.
    context : mx.Context, optional
    batch_size : int
    jaw : str, optional
        What networks of two jaws answer; by default the jaw that each face's landmarks have.
    dtype, flip
        As of :func:`predict_landmarks`.

    Returns
    -------
    FaceErrors
    """
    def predictions():
        faces = iter(records)
        while batch := list(islice(faces, batch_size)):
            crops = [(record.pixels(), record.box) for record in batch]
            jaws = [jaw or record.jaw or JAWS[0] for record in batch]
            yield from zip(batch, predict_landmarks(net, description, crops, context, jaws, dtype, flip))
    return _collect(predictions())


def mean_face(records: Iterable[FaceRecord]) -> np.ndarray:
    """The mean face: an ndarray (68, 2), relative to the box's center, in units of its longer side."""
    total: Any
    total, count = 0, 0
    for record in records:
        total, count = total + transform(crop_matrix(record.box, 1, 1), record.landmarks), count + 1
    return total / count


def evaluate_mean_face(face: np.ndarray, records: Iterable[FaceRecord]) -> FaceErrors:
    """Errors (:class:`FaceErrors`) of predicting the mean face (68, 2) for every image."""
    return _collect((record, transform(cv2.invertAffineTransform(crop_matrix(record.box, 1, 1)), face))
                    for record in records)


def _collect(predictions):
    """FaceErrors of pairs of a record and its predicted landmarks, in pixels of the record's crop."""
    names, yaw, predicted, truth = [], [], [], []
    for record, points in predictions:
        names.append(record.name)
        yaw.append(np.nan if record.pose is None else math.degrees(record.pose[1]))
        predicted.append(record.to_original(points))
        truth.append(record.to_original(record.landmarks))
    predicted, truth = np.array(predicted), np.array(truth)
    return FaceErrors(names, normalized_mean_errors(predicted, truth), np.array(yaw), predicted, truth)


def evaluate_sets(networks: Mapping[str, tuple[HybridBlock, Mapping[str, Any]]], recs: Mapping[str, PathLike],
                  train_recs: Optional[Sequence[PathLike]] = None,
                  jaw: Optional[str] = None, flip: bool = False,
                  data_check: str = 'full') -> dict[str, dict[str, FaceErrors]]:
    """Errors of each network on each set.

    Parameters
    ----------
    networks : dict of str to (HybridBlock, dict)
        By label, as returned by :func:`load_landmark_network`.
    recs : dict of str to path
        ``.rec`` files of faces, by name.
    train_recs : sequence of path, optional
        Files whose mean face is evaluated too.
    jaw, flip
        As of :func:`evaluate_landmarks`.
    data_check : str
        As of :func:`gluon_lprnet.data.integrity.check_records`.

    Returns
    -------
    dict of str to (dict of str to FaceErrors)
        By set, then by network.

    Raises
    ------
    InputError
        If a file is missing, damaged, or does not contain faces.
    """
    for rec in [*recs.values(), *(train_recs or ())]:
        check_face_records(rec, data_check)
    face = mean_face(record for rec in train_recs for record in read_face_records(rec)) if train_recs else None
    results = {}
    for name, rec in recs.items():
        results[name] = {
            label: evaluate_landmarks(net, tqdm(read_face_records(rec), f'{label} on {name}', unit='face', leave=False,
                                                disable=None), description, jaw=jaw, flip=flip)
            for label, (net, description) in networks.items()}
        if face is not None:
            results[name][MEAN_FACE] = evaluate_mean_face(face, read_face_records(rec))
    return results


def load_networks(paths: Sequence[PathLike]) -> dict[str, tuple[HybridBlock, dict[str, Any]]]:
    """Landmark networks by label: the model's name, with the path if several share the model."""
    loaded = [load_landmark_network(path) for path in paths]
    models = [description.get('model', str(path)) for path, (_, description) in zip(paths, loaded)]
    return dict(zip(distinct_names(models, paths), loaded))


def distinct_names(names: Sequence[str], paths: Sequence[PathLike]) -> list[str]:
    """The names, with the path where a name occurs twice.

    Raises
    ------
    InputError
        If a path occurs twice.
    """
    distinct = [name if names.count(name) == 1 else f'{name} ({path})' for name, path in zip(names, paths)]
    for name, path in zip(distinct, paths):
        if distinct.count(name) > 1:
            raise InputError(f'{path} is given twice.')
    return distinct
