"""``gluon-lprnet publish-compressed``: a compressed MobileNetV1 as weights with a card, as the package carries them."""
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from ..artifact import load_network, relative_difference
from ..deployment.reparametrize import reparametrize
from ..evaluate.network_flag import add_network_alone, with_network
from ..graph import trace
from ..predict.publish import add_card_flags, check_tag, facts_in_words, write_card
from ..utils.errors import InputError
from ..utils.flags import Commands, add_parser
from ..zoo import get_model
from ..zoo.pretrained import FOLDER

__all__ = ['as_zoo_network', 'publish_compressed']


def as_zoo_network(net: HybridBlock, description: dict[str, Any], ranks: Sequence[Optional[int]],
                   residual: bool) -> tuple[HybridBlock, str, dict[str, Any]]:
    """What :func:`gluon_lprnet.compress` made of a MobileNetV1 as a network of the zoo, with BatchNorm folded in.

    Parameters
    ----------
    net : HybridBlock
        The compressed network.
    description : dict
        Of the original: ``model``, ``num_classes``, ``small_image``, ``activation``, ``padding``.
    ranks : sequence of int or None
        Of the eight pointwise convolutions of equal width.
    residual : bool
        Of the modules.

    Returns
    -------
    tuple of (HybridBlock, str, dict)
        The network, and its name and keywords for :func:`gluon_lprnet.get_model`.

    Raises
    ------
    InputError
        If it is not a MobileNetV1 of the zoo with these modules.
    """
    width = re.fullmatch(r'mobilenetv1_(x[\d.]+)(-compressed)?', str(description.get('model')))
    if width is None:
        raise InputError(f'{description.get("model")} is not a compressed mobilenetv1 of the zoo.')
    name = f'compressed_mobilenet_{width[1]}'
    keywords = dict(classes=description['num_classes'], ranks=list(ranks), residual=residual, batch_norm=False,
                    activation=description.get('activation') or 'relu',
                    padding=description.get('padding') or 'symmetric')
    if description.get('small_image'):
        keywords['small_image'] = True
    found = get_model(name, **keywords)
    found.initialize()
    # Of the same graph, the parameters come in the same order.
    symbol, params = reparametrize(*trace(net))
    values = [params[key] for key in symbol.list_inputs() if key in params]
    parameters = found.collect_params()
    mine = [parameters[key] for key in trace(found)[0].list_inputs() if key in parameters]
    if [value.shape for value in values] != [parameter.shape for parameter in mine]:
        raise InputError(f'the network is not {name} with the ranks {list(ranks)}.')
    for parameter, value in zip(mine, values):
        parameter.set_data(value)
    size = description['input_size']
    images = mx.nd.array(np.random.default_rng(0).normal(0, 1, (2, 3, size, size)))
    if not relative_difference(found(images).asnumpy(), net(images).asnumpy()) <= 1e-4:
        raise InputError(f'the network is not {name} with the ranks {list(ranks)}: it gives other outputs.')
    return found, name, keywords


def publish_compressed(symbol: Union[str, Path], tag: str, rec_tests: Sequence[str], facts: dict[str, Any],
                       out: Union[str, Path] = FOLDER) -> Path:
    """Write ``compressed_MODEL.TAG.params``, in float16, and its card ``compressed_MODEL.TAG.json``, both or neither.

    Parameters
    ----------
    symbol : path
        The ``-symbol.json`` that ``compress`` wrote, with its report beside it.
    tag : str
        The data set's name, of letters, digits and ``_``, a letter first.
    rec_tests : sequence of str
        RecordIO files that the accuracy on the card is measured on, from the weights as they are written.
    facts : dict
        Further entries of the card: ``data``, ``command``, ``license``, ``machine``.
    out : path
        Folder; files of the same name are replaced.

    Returns
    -------
    Path
        The card.

    Raises
    ------
    InputError
        If it is not a compressed MobileNetV1, or the tag or a file is at fault.
    """
    check_tag(tag)
    net, description = load_network(symbol)
    report_path = Path(str(symbol).replace('-symbol.json', '-report.json'))
    try:
        report = json.loads(report_path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'{report_path}, the report of compress, cannot be read: {error}.') from error
    ranks = [layer['rank'] for layer in report['layers'] if layer['shape'][0] == layer['shape'][1]]
    found, name, keywords = as_zoo_network(net, description, ranks, report['residual'])
    return write_card(out, tag, found, {**description, 'model': name}, rec_tests,
                      {'keywords': keywords, 'recipe': report['recipe'], **facts}, dtype='float16')


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'publish-compressed',
        help='a compressed MobileNetV1 as weights with a card, as the package carries them',
        example='gluon-lprnet publish-compressed --network compressed/mobilenetv1_x0.5-compressed-symbol.json \\\n'
                "    --tag mydata --rec-test data/val.rec --data 'photos of ...' \\\n"
                "    --command 'gluon-lprnet compress ...' --license free --machine 'two cores' --out weights",
        description='Write compressed_MODEL.TAG.params, in float16, and its card, with the accuracy on --rec-test.')
    add_network_alone(parser, 'the -symbol.json that compress wrote')
    add_card_flags(parser, in_words_required=True)
    parser.set_defaults(run=_run, flags={'tag': '--tag'})


def _run(args):
    facts = facts_in_words(args)
    args = with_network('publish-compressed', args)
    print(publish_compressed(args.network, args.tag, args.rec_test, facts, args.out))
