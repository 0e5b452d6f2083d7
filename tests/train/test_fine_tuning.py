"""Training on from trained weights: what is taken, what stays as it is, and at what rate the rest learns."""
import contextlib
import itertools
import logging
import re

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from test_train import linear_task, settings

from gluon_lprnet import checkpoint, get_model
from gluon_lprnet.artifact import load_network, write_symbol
from gluon_lprnet.data.digits import pack_digits
from gluon_lprnet.data.recordio import read_records, write_records
from gluon_lprnet.graph import trace
from gluon_lprnet.train import imagenet
from gluon_lprnet.train.config import make_parser, parse
from gluon_lprnet.train.fine_tuning import freeze, take_weights
from gluon_lprnet.train.imagenet import ClassificationConfig
from gluon_lprnet.train.loop import Run
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.zoo.pretrained import FOLDER, find_card

MODEL = 'lprnet_mobilenet_x0.25'
SHIPPED = 'lprnet_mobilenet_x0.5.imagenette'


def network(model=MODEL, classes=7, seed=0, **kwargs):
    mx.random.seed(seed)
    net = get_model(model, classes=classes, small_image=True, **kwargs)
    net.initialize(mx.init.MSRAPrelu())
    return net


def values(net):
    return {name: parameter.data().asnumpy() for name, parameter in net._collect_params_with_prefix().items()}


@pytest.fixture
def trained(tmp_path):
    """A network of 7 classes: its values, and the paths of the files that hold them, by kind."""
    net = network(seed=1)
    net.save_parameters(str(tmp_path / 'own.params'))
    write_symbol(*trace(net), tmp_path / 'net')
    return values(net), {'own': tmp_path / 'own.params', 'exported': tmp_path / 'net-0000.params',
                         'symbol': tmp_path / 'net-symbol.json'}


@pytest.mark.parametrize('kind', ['own', 'exported', 'symbol'])
@pytest.mark.parametrize('classes', [7, 3])
def test_what_fits_is_taken_and_the_rest_named(trained, kind, classes):
    net = network(classes=classes)
    before = values(net)
    anew, unused, differences = take_weights(net, trained[1][kind])
    assert anew == ([] if classes == 7 else ['output.weight', 'output.bias'])
    assert unused == anew and differences == []
    for name, value in values(net).items():
        np.testing.assert_array_equal(value, (before if name in anew else trained[0])[name], err_msg=name)


def test_a_network_of_the_package_by_its_name():
    net = get_model('lprnet_mobilenet_x0.5', classes=20)
    net.initialize()
    assert take_weights(net, SHIPPED)[0] == ['output.weight', 'output.bias']
    shipped = mx.nd.load(str(FOLDER / f'{SHIPPED}.params'))
    np.testing.assert_array_equal(net.features[5].p1.weight.data().asnumpy(),
                                  shipped['features.5.p1.weight'].asnumpy())


@pytest.mark.parametrize('new, alike', [
    ({'l2_norm_scale': 'one'}, True), ({'global_depthwise': 4}, True), ({'l2_norm_scale': 'sqrt_width'}, False)])
def test_new_layers_that_begin_without_effect_are_no_difference(new, alike):
    net = get_model('lprnet_mobilenet_x0.5', classes=10, small_image=True, **new)
    net.initialize(mx.init.Xavier())
    taken = take_weights(net, 'lprnet_mobilenet_x0.5.cifar10', None, {'input_size': 32})
    assert taken.anew and not taken.unused and bool(taken.differences) != alike
    x = mx.nd.random.normal(shape=(2, 3, 32, 32))
    trained = get_model('lprnet_mobilenet_x0.5.cifar10')(x).asnumpy()
    assert np.allclose(net(x).asnumpy(), trained, rtol=1e-3, atol=1e-3) == alike


def test_weights_that_cannot_be_taken_are_refused_by_name(trained, tmp_path):
    with pytest.raises(InputError, match='own.params: none of its weights'):
        take_weights(network('lprnet_mobilenet_x0.5'), trained[1]['own'])
    with pytest.raises(InputError, match='`init_from` .*nowhere'):
        take_weights(network(), tmp_path / 'nowhere')
    (tmp_path / 'text.params').write_text('no parameters')
    with pytest.raises(InputError, match='text.params is not a file of parameters'):
        take_weights(network(), tmp_path / 'text.params')
    net = network()
    net.features[1][0][1].gamma.set_data(mx.nd.full(net.features[1][0][1].gamma.shape, np.nan))
    net.save_parameters(str(tmp_path / 'nan.params'))
    with pytest.raises(InputError, match='nan.params: the parameter features.1.0.1.gamma is NaN'):
        take_weights(network(), tmp_path / 'nan.params')


# --- weights that fit into another function

def form(**changes):
    """A small network of :func:`MobileNetV1`'s, whose names and shapes stay the same in every form."""
    return network('mobilenetv1_x0.25', **changes)


@pytest.mark.parametrize('own, others, said', [
    (dict(), dict(activation='relu6'), r'clip a_max=6.0 there, Activation act_type=relu here, at 27 layers, '
                                       r'features\.0\.1 to features\.13\.1\.1'),
    (dict(), dict(padding='tensorflow'), r'Convolution stride=\(2,2\) there, Convolution stride=\(2,2\) pad=\(1,1\)'
                                         r' here, at .*features\.\d'),
    (dict(activation='relu6'), dict(activation='relu6'), None)])
@pytest.mark.parametrize('as_file', [False, True])
def test_another_function_with_weights_that_fit_is_named(tmp_path, own, others, said, as_file):
    source = form(seed=1, **others)
    config = dict(task='classification', model='mobilenetv1_x0.25', num_classes=7, small_image=True, rank=None,
                  no_residual=False, no_l2_norm=False, input_size=32, **others)
    if as_file:
        source = write_symbol(*trace(source), tmp_path / 'net') or tmp_path / 'net-symbol.json'
    else:
        checkpoint.save(tmp_path, source, gluon.Trainer(source.collect_params(), 'sgd', kvstore=None),
                        {'step': 1, 'config': config})
        source = tmp_path
    taken = take_weights(form(**own), source)
    assert taken.anew == []
    assert bool(taken.differences) == bool(said)
    assert said is None or any(re.search(said, each) for each in taken.differences), taken.differences


@pytest.mark.parametrize('switch, said', [
    (dict(l2_norm=False), r'L2Normalization mode=channel there, nothing here, at 8 layers, features\.3\.p2'),
    (dict(residual=False), r'there, nothing here, at 8 layers, features\.3')])
def test_other_modules_with_the_same_weights_are_named(trained, switch, said):
    differences = take_weights(network(**switch), trained[1]['symbol']).differences
    assert len(differences) == 1 and re.search(said, differences[0]), differences


def test_another_stem_and_other_values_of_the_input_are_named():
    net = get_model('lprnet_mobilenet_x0.5', classes=20, small_image=True)
    net.initialize()
    description = find_card(SHIPPED).description
    taken = take_weights(net, SHIPPED, None, dict(rgb_mean=(0, 0, 0), rgb_std=tuple(description['rgb_std'])))
    assert taken.differences == [
        'Convolution stride=(2,2) pad=(1,1) there, Convolution pad=(1,1) here, at 2 layers, features.0.0 to '
        'features.2.0.0', 'rgb_mean 123.68 116.779 103.939 there, 0 0 0 here']


def test_a_training_warns_of_another_function(flags, tmp_path):
    assert imagenet.main([*flags, '--model', 'lprnet_mobilenet_x0.5', '--init-from', SHIPPED, '--num-epochs', '1',
                          '--warmup-epochs', '0', '--no-l2-norm']) == 0
    log = (tmp_path / 'run' / 'train.log').read_text()
    warning, = re.findall(r'computes something else than (\S+), .*worse answers:\n(?:  .*\n)*', log)
    assert warning == SHIPPED and 'L2Normalization mode=channel there, nothing here' in log


def test_a_network_of_the_package_is_trained_by_its_name(flags, tmp_path):
    name = 'lprnet_mobilenet_x0.5.imagenette'
    assert imagenet.main([*flags, '--preset', 'mobilenet', '--model', name, '--freeze', 'features', '--num-epochs', '1',
                          '--warmup-epochs', '0', '--min-random-scale', '1']) == 0
    log = (tmp_path / 'run' / 'train.log').read_text()
    assert f'weights of {name}; initialized anew: output.weight, output.bias;' in log
    saved = mx.nd.load(str(FOLDER / f'{name}.params'))
    # The run is loaded again, and so is what it exported.
    for path in (tmp_path / 'run', tmp_path / 'run' / 'export' / f'{name}-symbol.json'):
        net, description = load_network(path)
        assert description['model'] == name
        assert net(mx.nd.ones((1, 3, 32, 32))).shape == (1, 3)
    net, _ = load_network(tmp_path / 'run')
    for parameter, value in net._collect_params_with_prefix().items():
        if not parameter.startswith('output'):
            np.testing.assert_array_equal(value.data().asnumpy(), saved[parameter].asnumpy().astype('float32'))


def test_a_network_of_the_package_sees_its_input_as_it_did():
    name = 'compressed_mobilenet_x0.5.imagenet'
    config = ClassificationConfig.from_preset(model=name)
    description = find_card(name).description
    assert (config.input_size, *config.rgb_mean, *config.rgb_std) == (160, *description['rgb_mean'],
                                                                      *description['rgb_std'])
    assert config.rgb_mean != ClassificationConfig.from_preset().rgb_mean
    own = ClassificationConfig.from_preset(model=name, input_size=128, rgb_mean=(1, 2, 3))
    assert (own.input_size, own.rgb_mean, own.rgb_std) == (128, (1, 2, 3), config.rgb_std)
    with pytest.raises(InputError, match='no trained weights'):
        ClassificationConfig.from_preset(model='lprnet_mobilenet_x0.5.nothing')


def test_the_form_of_a_network_is_asked_for_by_its_name():
    net = get_model('lprnet_mobilenet_x1.0', classes=3)
    net.initialize()
    with pytest.raises(InputError, match='none of its weights .* give `model` compressed_mobilenet_x0.5.imagenet'):
        take_weights(net, 'compressed_mobilenet_x0.5.imagenet')


def test_frozen_layers_compute_as_in_prediction_and_stay(trained):
    net = network()
    take_weights(net, trained[1]['own'])
    frozen = freeze(net, r'^features\.')
    assert frozen and all(name.startswith('features.') for name in frozen)
    x = mx.nd.random.normal(shape=(4, 3, 16, 16))
    with autograd.record():
        y = net.features(x)
        loss = net.output(y).square().sum()
    np.testing.assert_allclose(y.asnumpy(), net.features(x).asnumpy(), rtol=1e-5, atol=1e-6)
    assert y.asnumpy().std(axis=0).max() > 0.01
    loss.backward()
    gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.1, 'wd': 0.1}).step(4)
    for name, value in values(net).items():
        assert np.array_equal(value, trained[0][name]) == (name not in ('output.weight', 'output.bias')), name


def test_a_layer_of_which_a_part_is_frozen_keeps_its_batch_statistics():
    net = network()
    freeze(net, r'features\.0\.1\.gamma')
    norm = net.features[0][1]
    before = norm.running_mean.data().asnumpy()
    with autograd.record():
        loss = net(mx.nd.random.normal(shape=(4, 3, 16, 16))).square().sum()
    loss.backward()
    assert not np.array_equal(norm.running_mean.data().asnumpy(), before)


@pytest.mark.parametrize('pattern, message', [('nothing', 'matches none of the'), ('running_', 'matches none of the'),
                                              ('.', 'matches all of the'), ('(', 'not a regular expression')])
def test_patterns_that_freeze_nothing_or_everything_are_refused(pattern, message):
    with pytest.raises(InputError, match=f'`freeze` {re.escape(pattern)} .*{message}'):
        freeze(network(), pattern)


# --- whole trainings

@pytest.fixture
def flags(training_flags):
    return [*training_flags, '--model', MODEL, '--tuning-epochs', '0', '--num-epochs', '2']


def test_a_fine_tuning_goes_on_as_it_began(flags, tiny_records, tmp_path):
    def weights(run):
        return mx.nd.load(str(sorted((tmp_path / run / 'checkpoints').iterdir())[-1] / 'net.params'))
    start = network(classes=10)
    start.save_parameters(str(tmp_path / 'start.params'))
    argv = [*flags, '--init-from', str(tmp_path / 'start.params'), '--freeze', 'features.([0-4])[.]', '--wd', '0.1',
            '--bn-wd', '--features-lr-mult', '0.1']
    assert imagenet.main(argv) == 0
    end, begun = weights('run'), values(start)
    same = {name for name in end if 'output' not in name and np.array_equal(end[name].asnumpy(), begun[name])}
    assert same == {name for name in end if re.search('features.([0-4])[.]', name)}
    log = (tmp_path / 'run' / 'train.log').read_text()
    assert 'initialized anew: output.weight, output.bias; not taken from there: output.weight, output.bias' in log
    # Resumed after its first epoch, without the file that it began with.
    (tmp_path / 'start.params').unlink()
    newest = sorted((tmp_path / 'run' / 'checkpoints').iterdir())[-1]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert imagenet.main(['--save-dir', str(tmp_path / 'run'), '--resume']) == 0
    for name, value in weights('run').items():
        np.testing.assert_allclose(value.asnumpy(), end[name].asnumpy(), rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_features_learn_at_their_own_rate(flags):
    def moved(factor):
        config = parse(make_parser(ClassificationConfig, None), ClassificationConfig,
                       [*flags, '--features-lr-mult', factor, '--momentum', '0', '--wd', '0.01'])[0]
        mx.random.seed(0)
        task = imagenet.build_task(config)
        before = values(task.net)
        (tmp := checkpoint.Path(config.save_dir)).mkdir(exist_ok=True)
        run = Run(task, config, logging.getLogger(str(tmp)))
        run.trainer.set_learning_rate(0.1)
        run.update([next(iter(task.batches(0, 0)))])
        return {name: value - before[name] for name, value in values(task.net).items() if 'running' not in name}
    whole, tenth = moved('1'), moved('0.1')
    for name, step in whole.items():
        np.testing.assert_allclose(tenth[name], step * (1 if name.startswith('output') else 0.1), rtol=2e-2, atol=1e-6)
        assert abs(step).max() > 0


def test_runs_of_before_name_their_start_by_another_word():
    config = ClassificationConfig.from_dict({'start_from': 'runs/first', 'num_classes': 3})
    assert config.init_from == 'runs/first'


# --- averaged weights

class _Killed(Exception):
    pass


def test_averaged_weights_are_those_of_numpy_and_resume_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)).astype('float32'), rng.normal(size=20).astype('float32')

    def run(name, resume=False, until=3):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        config = settings(ema_decay=0.7, save_dir=str(folder))
        task = linear_task(x, y, [mx.cpu()], batch_size=4)
        seen, evaluate = [], task.evaluate

        def evaluate_until():
            if len(epochs_of(folder)) == until:
                raise _Killed
            return evaluate()
        task.evaluate = evaluate_until
        found = checkpoint.newest(folder) if resume else None
        training = Run(task, config, logging.getLogger('test'), found)
        update = training.update

        def noting(batches):
            sums = update(batches)
            seen.append(task.net.weight.data().asnumpy().astype('float64')[0])
            return sums
        training.update = noting
        with contextlib.suppress(_Killed):
            training.fit()
        return seen, {name: {key: value.asnumpy() for key, value in
                             mx.nd.load(str(checkpoint.newest(folder).path / f'{name}.params')).items()}
                      for name in ('net', 'trained')}

    seen, straight = run('straight')
    average = np.full(3, 0.5)
    for step, weights in enumerate(seen, 1):
        decay = min(0.7, step / (step + 9))
        average = decay * average + (1 - decay) * weights
    np.testing.assert_allclose(straight['net']['weight'][0], average, rtol=1e-5)
    np.testing.assert_allclose(straight['trained']['weight'][0], seen[-1], rtol=1e-6)

    run('halves', until=1)
    _, resumed = run('halves', resume=True)
    for name, parameters in straight.items():
        for key, value in parameters.items():
            np.testing.assert_array_equal(resumed[name][key], value)


def epochs_of(folder):
    path = folder / 'metrics.jsonl'
    return [line for line in path.read_text().splitlines() if '"epoch"' in line.split(',')[0]] if path.exists() else []


# --- whether it is worth it

@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """Records of handwritten digits: 0 to 4, and of the others a few to train on and the rest to test on."""
    pytest.importorskip('sklearn')
    folder = tmp_path_factory.mktemp('digits')
    pack_digits(folder / 'all')
    low, high = [], []
    for label, image in itertools.chain(*(read_records(folder / 'all' / f'{part}.rec') for part in ('train', 'val'))):
        (low if label < 5 else high).append((int(label) % 5, image))
    for name, samples, classes in (('low', low[:600], '01234'), ('few', high[:50], '56789'),
                                   ('rest', high[50:250], '56789')):
        write_records(folder / name, samples, classes=list(classes))
    return folder


def test_trained_weights_beat_none_on_a_few_pictures_of_other_classes(digits, tmp_path):
    def accuracy(run, train, validation, epochs, *more):
        config = parse(make_parser(ClassificationConfig, None), ClassificationConfig, [
            '--preset', 'digits', '--num-classes', '5', '--rec-train', f'{digits / train}.rec', '--rec-val',
            f'{digits / validation}.rec', '--num-epochs', epochs, '--warmup-epochs', '0', '--tuning-epochs', '0',
            '--batch-size', '25', '-j', '1', '--save-dir', str(tmp_path / run), *more])[0]
        return imagenet.train(config)['top1']
    accuracy('start', 'low', 'low', '4')
    nothing = accuracy('nothing', 'few', 'rest', '8')
    tuned = accuracy('tuned', 'few', 'rest', '8', '--init-from', str(tmp_path / 'start'))
    # There are five again, but others.
    assert 'initialized anew: output.weight, output.bias;' in (tmp_path / 'tuned' / 'train.log').read_text()
    assert tuned > nothing + 0.1
