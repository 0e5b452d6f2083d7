"""The most probable classes of pictures: :class:`Classifier`, and ``gluon-lprnet predict``."""
import csv
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Optional, Union

import mxnet as mx
import numpy as np
from tqdm import tqdm

from ..artifact import load_network, outputs_for
from ..data.imagenet_names import imagenet_names, in_words, names_by_wnid
from ..data.images import (
    EXTENSIONS,
    MAX_SIDE,
    ImageError,
    ImageTooLarge,
    center_crop,
    images_in,
    normalize,
    read_image,
    side_to_read,
)
from ..evaluate.classification import add_description_flags, described, flags_of_description
from ..evaluate.network_flag import add_network_flag, split_networks
from ..utils.errors import InputError
from ..utils.files import PathLike
from ..utils.flags import Commands, add_parser, positive_int
from ..utils.processes import available_cpus

# Pictures that pass the network at once, which bounds memory.
BATCH_SIZE = 32

Image = Union[str, Path, bytes, np.ndarray]
_CONTENTS = bytes, bytearray, memoryview


def preprocess(path: Union[str, Path], description: dict[str, Any]) -> mx.nd.NDArray:
    """Read one picture and make the center crop that the validation uses.

    Returns
    -------
    NDArray (1, 3, input_size, input_size) float32

    Raises
    ------
    InputError
        If there is no picture at ``path`` that can be read.
    """
    try:
        return mx.nd.array(_prepared(path, description)[None])
    except ImageError as error:
        raise InputError(f'{path} {error}.') from error


def as_sequence(images: Any) -> Sequence[Any]:
    """Pictures as a sequence, which one alone is not yet."""
    is_one = isinstance(images, (str, os.PathLike, *_CONTENTS, np.ndarray)) or not isinstance(images, Iterable)
    return [images] if is_one else images if isinstance(images, Sequence) else list(images)


def unreadable(image: Any, number: int, error: ImageError) -> InputError:
    """The InputError of an ImageError: it names the file, or the picture's number."""
    return InputError(f'{image if isinstance(image, (str, Path)) else f"picture {number}"} {error}.')


def pixels_of(image: Image, least_side: Optional[int] = None) -> np.ndarray:
    """A picture as RGB pixels (height, width, 3) uint8.

    Parameters
    ----------
    image : path, bytes or ndarray
        A file, its content, or such pixels.
    least_side : int, optional
        As for :func:`gluon_lprnet.data.images.read_image`.

    Raises
    ------
    ImageError
        If a file cannot be read, an array has another shape or type or too long a side, or it is neither.
    """
    if isinstance(image, (str, os.PathLike, *_CONTENTS)):
        return read_image(bytes(image) if isinstance(image, _CONTENTS) else image, least_side=least_side)
    if not isinstance(image, np.ndarray):
        raise ImageError(f'is neither a path, nor bytes, nor an array: it is a {type(image).__name__}')
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ImageError(f'is not RGB pixels (height, width, 3) uint8: it is an array {image.shape} {image.dtype}')
    if max(image.shape) > MAX_SIDE:
        raise ImageTooLarge(f'is {image.shape[1]}x{image.shape[0]} pixels: at most {MAX_SIDE:,} a side are taken')
    return image


def _prepared(image, description):
    pixels = pixels_of(image, side_to_read(description))
    return normalize(center_crop(pixels, description), description)


@dataclass(frozen=True)
class Prediction:
    """A class of a picture: its name (its number, as text, where the network has no names), number and probability."""

    label: str
    index: int
    probability: float


class Classifier:
    """A classification network that takes pictures as they come.

    It may be used by several threads at once.

    Parameters
    ----------
    network : str or path
        A trained network of the package (``gluon_lprnet.list_models(pretrained=True)``), a run's or a checkpoint's
        folder, a ``*-symbol.json`` or an ``.onnx`` file.
    names : sequence of str, optional
        The classes' names in place of the network's own, in the order of the outputs.
    description : dict, optional
        Entries that complete or override the network's description: ``input_size``, ``crop_ratio``, ``rgb_mean``,
        ``rgb_std``.

    Raises
    ------
    InputError
        If it is not a classification network, or has another number of classes than ``names``.
    """

    def __init__(self, network: Union[str, Path], names: Optional[Sequence[str]] = None,
                 description: Optional[dict[str, Any]] = None) -> None:
        net, found = load_network(network)
        self._net = net
        self.description = described(network, found, description or {})
        size = self.description['input_size']
        classes = outputs_for(net, mx.nd.zeros((1, 3, size, size)), network).shape[1]
        self.names = list(map(str, range(classes)))
        self.rename(names or in_words(self.description.get('class_names') or self.names))
        # A network with static memory computes in one set of buffers.
        self._lock = threading.Lock()

    def rename(self, names: Sequence[str]) -> None:
        """Give the classes other names, in the order of the outputs; InputError if there are more or fewer."""
        if len(names) != len(self.names):
            raise InputError(f'the network has {len(self.names)} classes, and there are {len(names)} names: give one '
                             'for each class.')
        self.names = list(names)

    def predict(self, images: Union[Image, Sequence[Image]], top_k: int = 5) -> list[list[Prediction]]:
        """The most probable classes of pictures.

        Parameters
        ----------
        images : path, bytes, ndarray, or a sequence of these
            Files, their content, or RGB pixels (height, width, 3) uint8.
        top_k : int, default 5
            Classes of each picture.

        Returns
        -------
        list of list of Prediction
            A list for each picture, the most probable class first.

        Raises
        ------
        InputError
            For a picture that cannot be read, or an array that is not such pixels, which is named; if ``top_k`` is
            below 1.
        """
        pictures = as_sequence(images)
        results = []
        for number, result in enumerate(self.stream(pictures, top_k)):
            if isinstance(result, ImageError):
                raise unreadable(pictures[number], number, result) from result
            results.append(result)
        return results

    def stream(self, images: Sequence[Image], top_k: int = 5) -> Iterator[Union[list[Prediction], ImageError]]:
        """As :meth:`predict`, picture by picture in their order; for one that cannot be read, its ImageError."""
        if top_k < 1:
            raise InputError(f'`top_k` {top_k}: give 1 or more.')
        top_k = min(top_k, len(self.names))
        with ThreadPoolExecutor(available_cpus()) as pool:
            for begin in range(0, len(images), BATCH_SIZE):
                inputs = list(pool.map(self._input, images[begin:begin + BATCH_SIZE]))
                good = [each for each in inputs if not isinstance(each, ImageError)]
                probabilities = iter(self._forward(np.stack(good)) if good else ())
                for each in inputs:
                    yield each if isinstance(each, ImageError) else self._best(next(probabilities), top_k)

    def _input(self, image):
        try:
            return _prepared(image, self.description)
        except ImageError as error:
            return error

    def _forward(self, data):
        with self._lock:
            outputs = self._net(mx.nd.array(data)).softmax().asnumpy()
        if not np.isfinite(outputs).all():
            raise InputError('the network gives NaN or infinite outputs: take an earlier checkpoint.')
        return outputs

    def _best(self, probabilities, top_k):
        return [Prediction(self.names[index], int(index), float(probabilities[index]))
                for index in np.argsort(-probabilities, kind='stable')[:top_k]]


def read_names(path: Union[str, Path], wnids: Optional[Sequence[str]] = None) -> list[str]:
    """The names of classes in a text file.

    Parameters
    ----------
    path : path
        A name on each line, in the order of the classes; or ImageNet's ``LOC_synset_mapping.txt``, lines
        ``n01440764 tench, Tinca tinca``, of which the first name is taken. ``imagenet`` is the package's own file of
        the latter form.
    wnids : sequence of str, optional
        The WordNet ids of the network's classes, which the second form is looked up by; without them its order is
        taken.

    Raises
    ------
    InputError
        If the file cannot be read, or lacks a class.
    """
    if path == 'imagenet':
        by_wnid = imagenet_names()
    else:
        try:
            lines = [line.strip() for line in Path(path).read_text(encoding='utf-8-sig').splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f'--names {path} cannot be read: {getattr(error, "strerror", None) or error}.') from error
        try:
            by_wnid = names_by_wnid(lines)
        except ValueError:
            return in_words(lines)
    missing = [wnid for wnid in wnids or () if wnid not in by_wnid]
    if missing:
        raise InputError(f'--names {path} has no {missing[0]}, which is a class of the network.')
    return [by_wnid[wnid] for wnid in wnids or by_wnid]


def check_not_empty(argument: PathLike) -> None:
    """Raise InputError for an empty path, which would be the working folder: an unset variable of a shell is one."""
    if not os.fspath(argument):
        raise InputError('an empty name was given: name a picture or a folder (. is the working folder).')


def find_images(arguments: Iterable[PathLike]) -> list[Path]:
    """The pictures that files and folders name, folders searched through, as a list of Path; or InputError."""
    found = []
    for argument in arguments:
        check_not_empty(argument)
        path = Path(argument)
        inside = images_in(path) if path.is_dir() else [path]
        if not inside:
            raise InputError(f'{path} holds no pictures ({", ".join(EXTENSIONS)}).')
        found += inside
    return found


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'predict', help='the most probable classes of pictures',
        example='gluon-lprnet predict photo.jpg folder --top-k 3\n'
                'gluon-lprnet predict photo.jpg --network runs/latest --json',
        description='Name what pictures show. Exit status 1 if a picture could not be read; the others are done.')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='picture, or folder that is searched through')
    add_network_flag(parser, 'classification')
    parser.add_argument('--top-k', type=positive_int, default=5, help='classes of each picture (default: %(default)s)')
    parser.add_argument('--names', metavar='FILE',
                        help="names of the classes: one on each line, or ImageNet's LOC_synset_mapping.txt; "
                             "imagenet: the package's own table of these (default: the network's own names)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--json', action='store_true', help='print a JSON object for each picture, one on each line')
    form.add_argument('--csv', action='store_true', help='print comma-separated values')
    parser.set_defaults(run=_run)
    add_description_flags(parser)


def _run(args):
    (network,), images = split_networks('predict', 'classification', args.images, args.network)
    paths = find_images(images)
    classifier = Classifier(network, description=flags_of_description(args))
    if args.names:
        description = classifier.description
        classifier.rename(read_names(args.names, description.get('class_ids') or description.get('class_names')))
    writer = csv.writer(sys.stdout)
    if args.csv:
        writer.writerow(('image', 'rank', 'label', 'index', 'probability'))
    faults, begin = 0, time.perf_counter()
    for path, result in zip(paths, tqdm(classifier.stream(paths, args.top_k), 'predicting', len(paths), unit='image',
                                        leave=False, disable=None)):
        # A name of other bytes than UTF-8 is printed with replacements.
        name = str(path).encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')
        if isinstance(result, ImageError):
            faults += 1
            tqdm.write(f'{name} {result}.', file=sys.stderr)
            if args.json:
                print(json.dumps({'image': name, 'error': str(result)}, ensure_ascii=False))
        elif args.json:
            print(json.dumps({'image': name, 'classes': [asdict(each) for each in result]}, ensure_ascii=False))
        elif args.csv:
            writer.writerows((name, rank, *astuple(each)) for rank, each in enumerate(result, 1))
        else:
            print(name, *(f'  {each.probability:.4f}  {each.label}' for each in result), sep='\n')
    seconds = time.perf_counter() - begin
    if len(paths) > 1:
        print(f'{len(paths)} images in {seconds:.1f} s ({len(paths) / seconds:.0f} images/s)'
              + (f'; {faults} could not be read' if faults else ''), file=sys.stderr)
    return 1 if faults else 0
