"""Batches of faces with their landmarks from RecordIO: the square crop, and augmentation of both together.

MXNet's native reader does not know about landmarks, and Albumentations needs a second copy of OpenCV. Here a
single affine map moves both image and points, so they match exactly.
"""
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

import cv2
import numpy as np
from mxnet import gluon

from ..batches import Batch, Normalization
from .landmarks import crop_matrix, landmark_box, mirror, to_outputs, to_two_jaws, transform, warp_crop
from .records import FaceRecord

_A_YEAR = 365 * 24 * 3600

# Light that is left in the dark.
_DARKEST = 0.15, 0.7


@dataclass
class FaceAugmentation:
    """Random changes of a face: one affine map, and changes of its appearance.

    Attributes
    ----------
    rotation : float
        Largest angle in degrees, in either direction.
    roll, turned : float
        For the fraction ``turned`` of the faces the largest angle is ``roll`` degrees.
    scale : float
        Largest change of size, as a fraction: 0.1 gives 0.9 to 1.1.
    shift : float
        Largest shift along x and y, as a fraction of the crop's side.
    color : float
        Largest change of brightness, contrast and saturation, as a fraction.
    blur, gray, occlusion, dark : float
        Probability of a Gaussian blur, of a grayscale image, of a covered rectangle, of a dark image.
    mirror : bool
        Flip left and right, with the points renumbered, with probability 1/2.
    """
    rotation: float = 30.0
    roll: float = 0.0
    turned: float = 0.0
    scale: float = 0.1
    shift: float = 0.05
    color: float = 0.3
    blur: float = 0.1
    gray: float = 0.1
    occlusion: float = 0.2
    dark: float = 0.0
    mirror: bool = True

    def matrix(self, rng: np.random.Generator, box: np.ndarray, landmarks: np.ndarray, size: int,
               crop_scale: float) -> np.ndarray:
        """A random map (2, 3) from a picture to a crop of ``size`` pixels.

        Parameters
        ----------
        rng : numpy.random.Generator
        box : array (4,)
            Of the face, which the square is about that is then turned, scaled and shifted.
        landmarks : array (68, 2)
            Where faces are turned far, the square is about the box of the turned landmarks instead, as it is for a
            face that was photographed so.
        size : int
        crop_scale : float
        """
        limit = self.roll if self.turned and rng.random() < self.turned else self.rotation
        angle = math.radians(rng.uniform(-limit, limit))
        scale = 1 + rng.uniform(-self.scale, self.scale)
        shift = rng.uniform(-self.shift, self.shift, 2) * size
        center = (size - 1) / 2
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        if self.turned:
            crop = crop_matrix(landmark_box(landmarks @ turn.T), size, crop_scale)
            linear, offset = crop[:, :2] @ turn, crop[:, 2] - center
        else:
            crop = crop_matrix(box, size, crop_scale)
            linear, offset = turn @ crop[:, :2], turn @ (crop[:, 2] - center)
        return np.column_stack([scale * linear, scale * offset + center + shift])

    def look(self, rng: np.random.Generator, crop: np.ndarray) -> np.ndarray:
        """Color, blur and occlusion of a crop (size, size, 3) uint8."""
        size = crop.shape[0]
        brightness, contrast, saturation = 1 + rng.uniform(-self.color, self.color, 3)
        gray = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if rng.random() < self.gray:
            saturation = 0.0
        crop = cv2.addWeighted(crop, brightness * contrast * saturation,
                               gray, brightness * contrast * (1 - saturation),
                               brightness * (1 - contrast) * gray.mean())
        if self.dark and rng.random() < self.dark:
            crop = cv2.convertScaleAbs(crop, alpha=rng.uniform(*_DARKEST))
        if rng.random() < self.blur:
            crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.5, 2.0) * size / 112)
        if rng.random() < self.occlusion:
            width, height = rng.uniform(0.1, 0.45, 2) * size
            left, top = rng.uniform(0, size - width), rng.uniform(0, size - height)
            color = tuple(int(channel) for channel in rng.integers(0, 256, 3))
            cv2.rectangle(crop, (int(left), int(top)), (int(left + width), int(top + height)), color, cv2.FILLED)
        return crop


# The default, and for photos of all kinds: faces turned to any side, in boxes as detectors draw them, badly lit.
AUGMENTATIONS = {
    'mild': FaceAugmentation(),
    'wild': FaceAugmentation(roll=120.0, turned=0.3, scale=0.15, shift=0.07, color=0.4, blur=0.2, dark=0.25),
}


class FaceBatches:
    """The batches of faces, epoch by epoch; the same seed and epoch give the same batches.

    Parameters
    ----------
    faces : sequence of FaceRecord
        Their images stay encoded in memory: the 61,225 faces of 300W-LP take less than a gigabyte.
    input_size : int
        Height and width of the network's input, in pixels.
    crop_scale : float
        Side of the network's square, in units of the longer side of the landmarks' box.
    batch_size : int
    normalization : Normalization
        Mean and standard deviation of R, G and B on the scale 0 to 255.
    augmentation : FaceAugmentation, optional
        For training.
    threads : int
        Threads that decode and warp.
    seed : int
    two_jaws : bool
        Labels of :func:`gluon_lprnet.data.faces.landmarks.to_two_jaws`, for which each face must say which jaw it has.
    part : tuple of (int, int)
        Of each epoch's faces in their order: the number of the first one, from 0, and the step to the next. The batches
        of all parts together are those of the whole.
    shuffle : bool
        A random order, another one in each epoch.
    """

    def __init__(self, faces: Sequence[FaceRecord], input_size: int, crop_scale: float, batch_size: int,
                 normalization: Normalization, augmentation: Optional[FaceAugmentation] = None, threads: int = 2,
                 seed: int = 0, two_jaws: bool = False, part: tuple[int, int] = (0, 1),
                 shuffle: bool = False) -> None:
        self.faces = faces
        self._part = slice(part[0], None, part[1])
        self.batch_size = min(batch_size, len(faces[self._part]))
        self._input_size = input_size
        self._crop_scale = crop_scale
        self._mean, self._std = (np.float32(values) for values in normalization)
        self._augmentation = augmentation
        self._threads = threads
        self._seed = seed
        self._two_jaws = two_jaws
        self._shuffle = shuffle

    def __len__(self) -> int:
        """Batches an epoch, a short last one included."""
        return math.ceil(len(self.faces[self._part]) / self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the epoch's batches from number ``start`` on.

        Yields
        ------
        Batch
            ``data`` (N, 3, input_size, input_size) float32, ``label`` (N, 136) float32 as returned by
            :func:`gluon_lprnet.data.faces.landmarks.to_outputs` or (N, 170) as of
            :func:`~gluon_lprnet.data.faces.landmarks.to_two_jaws`.
        """
        order = np.arange(len(self.faces))
        if self._shuffle:
            np.random.default_rng((self._seed, epoch)).shuffle(order)
        samples = gluon.data.SimpleDataset(order[self._part][start * self.batch_size:]).transform(
            lambda index: self._sample(index, epoch))
        # A training that is suspended waits longer than Gluon's two minutes.
        for data, label in gluon.data.DataLoader(samples, self.batch_size, num_workers=self._threads,
                                                 thread_pool=True, timeout=_A_YEAR):
            yield Batch(data, label)

    def _sample(self, index, epoch):
        face, size = self.faces[index], self._input_size
        if self._augmentation:
            rng = np.random.default_rng((self._seed, epoch, index))
            matrix = self._augmentation.matrix(rng, face.box, face.landmarks, size, self._crop_scale)
        else:
            matrix = crop_matrix(face.box, size, self._crop_scale)
        crop = warp_crop(face.pixels(), matrix, size)
        landmarks = transform(matrix, face.landmarks)
        if self._augmentation:
            crop = self._augmentation.look(rng, crop)
            if self._augmentation.mirror and rng.random() < 0.5:
                crop, landmarks = crop[:, ::-1], mirror(landmarks, size)
        data = ((crop - self._mean) / self._std).transpose(2, 0, 1)
        label = to_two_jaws(landmarks, face.jaw, size) if self._two_jaws else to_outputs(landmarks, size)
        return data, label.astype('float32')
