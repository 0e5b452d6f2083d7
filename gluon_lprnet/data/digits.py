"""A small real data set without a download: the 1,797 handwritten digits of scikit-learn."""
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..utils.errors import InputError
from ..utils.files import PathLike, write_file
from ..utils.flags import add_parser
from .recordio import check_prefix, write_records

SIDE = 32
VALIDATION_IMAGES = 397
PICTURES = 10


def pack_digits(folder: PathLike, seed: int = 0, overwrite: bool = False) -> tuple[int, int]:
    """Pack the digits as ``train.rec``, ``val.rec`` and ten held-out images.

    The 8x8 pixels with 16 gray levels are enlarged to 32x32 RGB and stored as PNG. The split is random, by
    ``seed``; ``held_out/`` has the first ten images of the validation part, with the digit in the name.

    Parameters
    ----------
    folder : path
        Created if it does not exist.
    seed : int
    overwrite : bool
        Replace files of the same names.

    Returns
    -------
    tuple of int
        Images for training and for validation.

    Raises
    ------
    InputError
        If scikit-learn is not installed, or there are records of the same names.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError('the digits are part of scikit-learn: pip install scikit-learn.') from error
    # Somebody's records may have these names.
    for name in ('train', 'val'):
        check_prefix(Path(folder) / name, overwrite)
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    samples = [(int(digits.target[index]), _png(digits.images[index])) for index in order]
    held_out = Path(folder) / 'held_out'
    for number, (label, image) in enumerate(samples[:PICTURES]):
        write_file(held_out / f'{number}-is-a-{label}.png', image)
    names = [str(name) for name in digits.target_names]
    counts = []
    for name, part in (('train', samples[VALIDATION_IMAGES:]), ('val', samples[:VALIDATION_IMAGES])):
        _, count, _ = write_records(Path(folder) / name, part, classes=names, overwrite=overwrite)
        counts.append(count)
    return counts[0], counts[1]


def add_commands(commands: Any) -> None:
    parser = add_parser(
        commands, 'digits', help="pack scikit-learn's handwritten digits, for a quick start without a download",
        example='gluon-lprnet digits data/digits')
    parser.add_argument('folder', help='where train.rec, val.rec and held_out/ are written')
    parser.add_argument('--overwrite', action='store_true', help='replace existing files')
    parser.set_defaults(run=_run, flags={'prefix': 'FOLDER'})


def _run(args):
    train, val = pack_digits(args.folder, overwrite=args.overwrite)
    print(f'{args.folder}: {train} digits for training, {val} for validation, {PICTURES} of these as pictures')


def _png(gray):
    pixels = cv2.resize((gray * (255 / 16)).astype('uint8'), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode('.png', cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR))[1].tobytes()
