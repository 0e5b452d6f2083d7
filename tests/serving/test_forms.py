"""The forms in which a worker runs a network, against MXNet's own operators, and which of them is taken."""
import re

import mxnet as mx
import numpy as np
import pytest
from reference.late import COMPUTED, computed_late

from gluon_lprnet import get_model
from gluon_lprnet.deployment.operators import load_library
from gluon_lprnet.serving import forms
from gluon_lprnet.serving.forms import load_network
from gluon_lprnet.utils.errors import InputError


# Of the input, in pixels.
SIZES = {'lprnet': 64, 'squeezenet': 224}


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """By name, where the files of a network are: one of the package as trained, and one of another program."""
    folder, nets = tmp_path_factory.mktemp('forms'), {}
    for name, net in (('lprnet', get_model('lprnet_mobilenet_x0.25', classes=5)),
                      ('squeezenet', mx.gluon.model_zoo.vision.squeezenet1_1(classes=5))):
        net.initialize(mx.init.Xavier())
        net.hybridize()
        net(mx.nd.zeros((1, 3, SIZES[name], SIZES[name])))
        net.export(str(folder / name))
        nets[name] = folder / name
    return nets


def by_mxnet(prefix, images):
    net = mx.gluon.SymbolBlock.imports(f'{prefix}-symbol.json', ['data'], f'{prefix}-0000.params')
    return net(mx.nd.array(images)).asnumpy()


@pytest.mark.parametrize('name', ['lprnet', 'squeezenet'])
@pytest.mark.parametrize(('form', 'names'), [
    ('library', 'the operator library'), ('standard', "MXNet's fusion|MXNet"),
    ('auto', "the operator library|MXNet's fusion|MXNet")])
def test_every_form_computes_the_same(exported, name, form, names):
    net = load_network(exported[name], SIZES[name], form)
    assert re.match(rf'({names}): \d+\.\d ms a picture', net.report)
    # In passes of 8, 4 and 1, and then of 2: none depends on those before it.
    images = np.random.default_rng(1).normal(0, 1, (15, 3, SIZES[name], SIZES[name])).astype('float32')
    expected = by_mxnet(exported[name], images)
    assert np.ptp(expected, axis=0).max() > 0.01 * abs(expected).max()
    for part in slice(0, 13), slice(13, 15), slice(3, 4), slice(0, 15):
        np.testing.assert_allclose(net(images[part]), expected[part], rtol=0, atol=1e-5 * abs(expected).max())


def test_the_fastest_form_is_taken(exported, monkeypatch):
    load_library()
    for fastest in "MXNet's fusion", 'MXNet', 'the operator library':
        monkeypatch.setattr(forms, '_milliseconds', lambda functions, fastest=fastest:
                            {name: 1.0 if name == fastest else 2.0 for name in functions})
        report = load_network(exported['lprnet'], 64).report
        assert report.startswith(f'{fastest}: 1.0 ms a picture, ') and report.count(' 2.0') == 2


def test_a_form_that_computes_something_else_is_not_taken(exported, monkeypatch):
    """As is one that fails."""
    class Wrong(mx.gluon.SymbolBlock):
        def optimize_for(self, data, backend, **flags):
            if backend == 'MKLDNN':
                raise mx.MXNetError('it fails')
            for parameter in self.collect_params('.*weight').values():
                parameter.data()[:] *= 2
    monkeypatch.setattr(mx.gluon, 'SymbolBlock', Wrong)
    net = load_network(exported['lprnet'], 64)
    assert re.fullmatch(r'MXNet: \d+\.\d ms a picture', net.report)
    with pytest.raises(InputError, match='the operator library fails on .*lprnet-symbol.json: take another form'):
        load_network(exported['lprnet'], 64, 'library')


def test_partitioned_when_all_is_computed(exported, monkeypatch):
    """A backend that is asked to partition while MXNet computes a parameter may take its memory from it."""
    computed = []

    class Late(mx.gluon.SymbolBlock):
        def load_parameters(self, *args, **keywords):
            super().load_parameters(*args, **keywords)
            weight = next(iter(self.collect_params('.*weight').values()))
            weight.set_data(computed_late(weight.data()))

        def optimize_for(self, *args, **keywords):
            computed.append(len(COMPUTED))
            super().optimize_for(*args, **keywords)
    monkeypatch.setattr(mx.gluon, 'SymbolBlock', Late)
    load_network(exported['lprnet'], 64, 'library')
    assert computed and set(computed) == {1}


def test_without_a_compiler(exported, monkeypatch):
    def fail():
        raise InputError('there is no compiler')
    monkeypatch.setattr(forms, 'load_library', fail)
    assert re.fullmatch(r'MXNet.*: \d+\.\d ms a picture, MXNet.* \d+\.\d; there is no compiler',
                        load_network(exported['lprnet'], 64).report)
    assert 'compiler' not in load_network(exported['lprnet'], 64, 'standard').report
    with pytest.raises(InputError, match='there is no compiler'):
        load_network(exported['lprnet'], 64, 'library')
