"""The most probable classes of pictures: ``python -m gluon_lprnet predict``."""
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np

from ..data.batches import shorter_side
from ..evaluate.classification import add_description_flags, load_described
from ..utils.errors import InputError
from ..utils.flags import positive_int


def preprocess(path, config):
    """Read one picture and make the centre crop that the validation uses.

    Returns
    -------
    NDArray (1, 3, input_size, input_size) float32

    Raises
    ------
    InputError
        If there is no picture at ``path`` that OpenCV can read.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR) if Path(path).is_file() else None
    if image is None:
        raise InputError(f'{path}: {"not a picture that can be read" if Path(path).exists() else "no such file"}.')
    image = mx.nd.array(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype='uint8')
    size = config['input_size']
    # Bilinear, as ImageRecordIter resizes.
    image = mx.image.resize_short(image, shorter_side(config), interp=cv2.INTER_LINEAR)
    image = mx.image.center_crop(image, (size, size), interp=cv2.INTER_LINEAR)[0].astype('float32')
    image = mx.image.color_normalize(image, mx.nd.array(config['rgb_mean']), mx.nd.array(config['rgb_std']))
    return image.transpose((2, 0, 1)).expand_dims(0)


def add_commands(commands):
    parser = commands.add_parser('predict', help='most probable classes of pictures')
    parser.add_argument('network', help='run folder, checkpoint folder or -symbol.json')
    parser.add_argument('images', nargs='+', metavar='IMAGE')
    parser.add_argument('--top-k', type=positive_int, default=5)
    parser.set_defaults(run=_run)
    add_description_flags(parser)


def _run(args):
    net, description = load_described(args)
    names = description.get('class_names')
    for path in args.images:
        probabilities = net(preprocess(path, description)).softmax().asnumpy()[0]
        print(path)
        for label in np.argsort(-probabilities)[:args.top_k]:
            print(f'  {probabilities[label]:.4f}  {names[label] if names else label}')
