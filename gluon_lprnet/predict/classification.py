"""The most probable classes of pictures: ``python -m gluon_lprnet predict``."""
import mxnet as mx
import numpy as np

from ..data.images import ImageError, center_crop, normalize, read_image
from ..evaluate.classification import add_description_flags, load_described
from ..utils.errors import InputError
from ..utils.flags import positive_int


def preprocess(path, config):
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
        crop = center_crop(read_image(path), config)
    except ImageError as error:
        raise InputError(f'{path} {error}.') from error
    return mx.nd.array(normalize(crop, config)[None])


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
