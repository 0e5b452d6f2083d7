"""Channels taken out of shift modules, against the network with their weights set to 0."""
import mxnet as mx
import numpy as np
import pytest
from reference.networks import random_images, random_network, relative_error

from gluon_lprnet import get_model
from gluon_lprnet.blocks import ShiftResidual
from gluon_lprnet.complexity import count
from gluon_lprnet.compression import prune_shifts
from gluon_lprnet.utils.errors import InputError


def modules(net):
    return [layer for layer in net.features if isinstance(layer, ShiftResidual)]


def network():
    return random_network('shiftresnet20_x3.0')


def kept_channels(net, pruned):
    """Found by the rows of the first convolutions."""
    kept = []
    for module, smaller in zip(modules(net), modules(pruned)):
        rows, others = (block.first[0].weight.data().asnumpy()[:, :, 0, 0] for block in (module, smaller))
        kept.append([int(np.flatnonzero((rows == row).all(axis=1))[0]) for row in others])
    return kept


@pytest.mark.parametrize('criterion', ['term', 'magnitude', 'random'])
def test_without_images_it_is_the_network_with_zeros(criterion):
    net, x = network(), random_images(2, 32)
    before = net(x).asnumpy()
    pruned = prune_shifts(net, 0.5, criterion)
    for module, kept in zip(modules(net), kept_channels(net, pruned)):
        hidden = len(module.shift.directions)
        assert len(kept) == hidden - hidden // 2 and kept == sorted(kept)
        mask = np.isin(np.arange(hidden), kept)
        weight = module.second[0].weight
        weight.set_data(weight.data() * mx.nd.array(mask[None, :, None, None]))
    assert relative_error(pruned(x).asnumpy(), net(x).asnumpy()) < 1e-5
    assert relative_error(pruned(x).asnumpy(), before) > 1e-2


def test_what_stays_by_each_criterion():
    net = network()
    chosen = {criterion: kept_channels(net, prune_shifts(net, 0.75, criterion)) for criterion in
              ('term', 'magnitude', 'random')}
    for number, module in enumerate(modules(net)):
        a = module.first[0].weight.data().asnumpy()[:, :, 0, 0]
        b = module.second[0].weight.data().asnumpy()[:, :, 0, 0]
        norm = module.first[1]
        scale = norm.gamma.data().asnumpy() / np.sqrt(norm.running_var.data().asnumpy() + 1e-5)
        # The Frobenius norm of the term: d has a single 1.
        terms = [np.linalg.norm(np.outer(b[:, r], scale[r] * a[r])) for r in range(len(a))]
        left = len(a) - int(0.75 * len(a))
        assert chosen['term'][number] == sorted(np.argsort(terms)[-left:])
        assert chosen['magnitude'][number] == sorted(np.argsort(abs(a).sum(axis=1))[-left:])
    assert chosen['random'] not in (chosen['term'], chosen['magnitude'])
    assert kept_channels(net, prune_shifts(net, 0.75, 'random', seed=1)) != chosen['random']
    assert kept_channels(net, prune_shifts(net, 0.75, 'random')) == chosen['random']


def test_channels_that_do_not_vary_go_first_and_their_means_stay():
    """Channels that are constant on the images are taken out, and the outputs stay."""
    net, x = network(), random_images(16, 32)
    random, shares = np.random.default_rng(3), []
    for module in modules(net):
        norm = module.first[1]
        # Those that are not shifted, so that the zeros from outside do not come in.
        middle = [channel for channel, direction in enumerate(module.shift.directions) if direction == 4]
        chosen = random.choice(middle, len(middle) // 2, replace=False)
        gamma, beta = norm.gamma.data().asnumpy(), norm.beta.data().asnumpy()
        gamma[chosen], beta[chosen] = 0, 2
        norm.gamma.set_data(mx.nd.array(gamma))
        norm.beta.set_data(mx.nd.array(beta))
        shares.append(len(chosen) / len(module.shift.directions))
    expected = net(x).asnumpy()
    pruned = prune_shifts(net, min(shares), 'term', [x])
    assert all(len(kept) < len(module.shift.directions)
               for module, kept in zip(modules(net), kept_channels(net, pruned)))
    assert relative_error(pruned(x).asnumpy(), expected) < 1e-4
    assert relative_error(prune_shifts(net, min(shares), 'term')(x).asnumpy(), expected) > 1e-2


def test_half_of_the_channels_are_nearly_half_of_the_network():
    net = network()
    before, after = (count(each, (1, 3, 32, 32)) for each in (net, prune_shifts(net, 0.5, 'random')))
    assert 0.48 < after.params / before.params < 0.56
    assert 0.48 < after.multiply_adds / before.multiply_adds < 0.56


@pytest.mark.parametrize('arguments, message', [
    (dict(share=1.0), 'below 1'), (dict(share=-0.1), 'from 0'), (dict(share=0.5, criterion='l1'), 'term, magnitude'),
    (dict(share=0.5, net='mobilenetv1_x0.25'), 'shiftresnet20')])
def test_what_does_not_fit_is_refused(arguments, message):
    name = arguments.pop('net', 'shiftresnet20_x1.0')
    net = get_model(name, classes=10)
    net.initialize()
    with pytest.raises(InputError, match=message):
        prune_shifts(net, **arguments)
