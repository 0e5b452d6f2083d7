"""The experiments on CIFAR-10: their networks, their runs side by side, Figure 2's comparison."""
import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import encode, epoch_records
from matplotlib.figure import Figure
from mxnet import autograd

from gluon_lprnet import checkpoint, get_model, list_models
from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import model_arguments
from gluon_lprnet.blocks import LPR, SConv, normalize_in_rank_space
from gluon_lprnet.complexity import count
from gluon_lprnet.data.recordio import read_records, write_records
from gluon_lprnet.paper import cifar10, figure2, networks
from gluon_lprnet.paper.closed_form import begin_near
from gluon_lprnet.paper.grid import Result, ExperimentRow
from gluon_lprnet.train.config import make_parser, parse
from gluon_lprnet.train.imagenet import ClassificationConfig

ROOT = Path(__file__).resolve().parents[2]


# --- networks

@pytest.mark.parametrize('name, millions', [('table4_sconv', '11.5'), ('mobilenetv1', '3.1'), ('table4_lpr', '2.4')])
def test_table_4_counts_weights_without_batch_norm(name, millions):
    layers = count(get_model(name, classes=10), (1, 3, 64, 64)).layers
    weights = sum(layer.params for layer in layers if layer.operator != 'BatchNorm')
    assert str(weights / 1e6).startswith(millions)


def test_table_4_swaps_four_modules_of_width_512():
    def widths(name):
        return [layer.output_shape[1] for layer in count(get_model(name, classes=10)).layers
                if layer.operator == 'L2Normalization']
    assert widths('table4_lpr') == [512] * 4
    assert widths('lprnet_mobilenet') == [128, 256] + [512] * 5 + [1024]


def built(module, channels=16):
    block = module(channels)
    block.initialize(mx.init.Xavier())
    x = mx.nd.array(np.random.default_rng(0).normal(size=(2, channels, 5, 5)))
    y = block(x).asnumpy()
    d = block.depthwise(x).asnumpy()
    p = block.p2(block.p1(mx.nd.array(d))).asnumpy()
    return block, y, d, p, p / np.sqrt((p ** 2).sum(axis=1, keepdims=True))


def test_relu_after_the_depthwise_part():
    _, y, d, _, normalized = built(networks.DepthwiseReLU)
    assert d.min() == 0
    np.testing.assert_allclose(y, np.maximum(normalized + d, 0), atol=1e-5)


def test_relu_after_the_depthwise_part_alone():
    _, y, d, _, normalized = built(networks.DepthwiseReLUAlone)
    assert d.min() == 0 and y.min() < 0
    np.testing.assert_allclose(y, normalized + d, atol=1e-5)


def batch_norm(block, x):
    gamma, beta, mean, variance = (getattr(block, name).data().asnumpy()[:, None, None]
                                   for name in ('gamma', 'beta', 'running_mean', 'running_var'))
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def test_batch_norm_after_and_in_place_of_the_l2_norm():
    for module, wanted in ((networks.BatchNormAfterL2Norm, 4), (networks.BatchNormForL2Norm, 3)):
        block, *values = built(module)
        block.batch_norm.gamma.set_data(mx.nd.arange(1, 17))
        x = mx.nd.array(np.random.default_rng(0).normal(size=(2, 16, 5, 5)))
        y, d = block(x).asnumpy(), values[1]
        np.testing.assert_allclose(y, np.maximum(batch_norm(block.batch_norm, values[wanted - 1]) + d, 0), atol=1e-4)


@pytest.mark.parametrize('module, axes', [(networks.SpatialL2Norm, (2, 3)), (networks.InstanceL2Norm, (1, 2, 3))])
def test_other_readings_of_the_l2_norm(module, axes):
    block, y, d, p, _ = built(module)
    expected = np.maximum(p / np.sqrt((p ** 2).sum(axis=axes, keepdims=True)) + d, 0)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    # As it is trained.
    normalize_in_rank_space(block, True)
    x = mx.nd.array(np.random.default_rng(0).normal(size=(2, 16, 5, 5)))
    np.testing.assert_allclose(block(x).asnumpy(), expected, atol=1e-5)


def test_small_scale_of_the_depthwise_part():
    block, y, d, _, normalized = built(networks.SmallDepthwiseScale)
    np.testing.assert_allclose(block.depthwise[1].gamma.data().asnumpy(), np.full(16, 0.25))
    np.testing.assert_allclose(y, np.maximum(normalized + d, 0), atol=1e-5)
    # In training, with the statistics of the batch, both parts begin equally large.
    with autograd.train_mode():
        d = block.depthwise(mx.nd.array(np.random.default_rng(0).normal(size=(8, 16, 5, 5)))).asnumpy()
    assert abs((d ** 2).mean() - (normalized ** 2).mean()) < 0.01 * (d ** 2).mean()


def test_initial_values_and_decay():
    block = built(networks.OrthogonalInit)[0]
    p1, p2 = (convolution.weight.data().asnumpy()[:, :, 0, 0] for convolution in (block.p1, block.p2))
    np.testing.assert_allclose(p1 @ p1.T, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(p2.T @ p2, np.eye(2), atol=1e-5)
    assert abs(built(networks.SmallInit, 64)[0].p1.weight.data().asnumpy().std() - 0.01) < 0.003
    block = built(networks.NoDecay)[0]
    assert (block.p1.weight.wd_mult, block.p2.weight.wd_mult) == (0, 0)
    assert block.depthwise[0].weight.wd_mult == 1


@pytest.mark.parametrize('width', [0.5, 1.0])
def test_every_row_is_a_network_of_its_own(width):
    # DenseNet-40 has one width.
    for build in set(cifar10.EXPERIMENTS.values()) - ({cifar10.irregular} if width != 1 else set()):
        experiment = build(width)
        names = [row.name for row in experiment.rows]
        assert len(set(names)) == len(names) and experiment.reference in names
        for row in experiment.rows:
            arguments = [*experiment.flags.split(), *row.flags.split(), '--save-dir', 'nowhere']
            config, _ = parse(make_parser(ClassificationConfig, None), ClassificationConfig, arguments)
            assert get_model(config.model, **model_arguments(config.to_dict())) is not None


def test_families_are_of_the_listed_widths_nearest_in_multiply_adds():
    """Counted here by what the convolutions' shapes say, for 32x32."""
    def multiply_adds(name):
        layers = count(get_model(name, classes=10, small_image=True), (1, 3, 32, 32)).layers
        return sum(layer.params * layer.output_shape[2] * layer.output_shape[3] for layer in layers
                   if layer.operator == 'Convolution')

    ours = multiply_adds('lprnet_mobilenet_x0.5')
    models = [row.flags.split()[1] for row in cifar10.families(0.5).rows]
    assert models[:3] == ['lprnet_mobilenet_x0.5', 'lprnet_mobilenet_x0.5', 'mobilenetv1_x0.5']
    for name in models[3:]:
        family, _, width = name.rpartition('_x')
        others = [other for other in list_models() if other.rpartition('_x')[0] == family]
        assert float(width) and name == min(others, key=lambda other: abs(multiply_adds(other) - ours))
    assert {'igcv3_x0.5', 'espnetv2_x1.0', 'mnasnet_x0.5', 'condensenet_x1.0'} < set(models)


def test_networks_of_the_experiments_are_not_in_the_zoo():
    script = """
import gluon_lprnet
from gluon_lprnet.utils.errors import InputError
try:
    gluon_lprnet.get_model('table4_sconv_x0.5')
except InputError as error:
    assert 'lprnet_mobilenet' in str(error) and 'with' not in str(error), error
else:
    raise AssertionError('it is there')
import gluon_lprnet.paper.networks
gluon_lprnet.get_model('table4_sconv_x0.5')
assert not [name for name in gluon_lprnet.list_models() if 'table4' in name or '_with' in name]
"""
    subprocess.run([sys.executable, '-c', script], check=True)


def test_the_command_knows_the_networks_of_its_rows():
    script = "import gluon_lprnet, gluon_lprnet.__main__; gluon_lprnet.get_model('table4_sconv_x0.5')"
    subprocess.run([sys.executable, '-c', script], check=True)


# --- the grid

@pytest.fixture(scope='module')
def tiny_records(tiny_records, tmp_path_factory):
    """The three classes without their names: the experiments are on ten."""
    _, images, labels = tiny_records
    prefix = tmp_path_factory.mktemp('unnamed') / 'tiny'
    write_records(prefix, [(int(label), encode(image)) for label, image in zip(labels, images)])
    return prefix, images, labels


def arguments(tiny_records, out, *more):
    prefix, _, _ = tiny_records
    return ['experiment', 'table4', '--width', '0.25', '--num-epochs', '2', '--rec-train', f'{prefix}.rec',
            '--rec-val', f'{prefix}.rec', '--out', str(out), *more]


ROWS = ['--rows', 'mobilenetv1_x0.25', 'table4_lpr_x0.25']


def test_rows_are_trained_once_and_summed_up(tiny_records, tmp_path, capsys):
    command = arguments(tiny_records, tmp_path, '--seeds', '0', '1', '--jobs', '2', *ROWS)
    assert main(command) == 0
    printed = capsys.readouterr().out
    runs = {path.name: epoch_records(path) for path in tmp_path.iterdir()}
    assert set(runs) == {f'{row}-seed{seed}' for row in ROWS[1:] for seed in (0, 1)}
    assert all([record['epoch'] for record in epochs] == [0, 1] for epochs in runs.values())
    dsc, lpr = ([100 * runs[f'{row}-seed{seed}'][-1]['val_top1'] for seed in (0, 1)] for row in ROWS[1:])
    line = next(line for line in printed.splitlines() if line.startswith('LPR Module  '))
    differences = [b - a for a, b in zip(dsc, lpr)]
    for values, sign in ((lpr, ''), (differences, '+')):
        assert f'{np.mean(values):{sign}.2f} ± {np.std(values, ddof=1):.2f}' in line
    # Not trained: no accuracy.
    assert next(line for line in printed.splitlines() if line.startswith('SConv')).split()[3] == '0'

    # Finished by the word of the checkpoint, not of a folder.
    (tmp_path / 'mobilenetv1_x0.25-seed0' / 'export').rename(tmp_path / 'elsewhere')
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()}
    capsys.readouterr()
    assert main([*command, '--latency', '--format', 'markdown']) == 0
    header, _, *lines = capsys.readouterr().out.split('\n\n')[1].splitlines()
    times = {line.split('|')[1].strip(): line.split('|')[-2].strip() for line in lines}
    assert header.split('|')[-2].strip() == 'ms' and len(times) == 10
    # Of the rows of this call alone.
    assert {title for title, time in times.items() if time and float(time) > 0} == {'DSC Module', 'LPR Module'}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()} == before


def test_finished_runs_as_csv(tmp_path):
    results = {'a': Result({1: 80.126, 0: 82.0}, 11, 1000, 140.4), 'b': Result({}, 1, 1, None),
               'c': Result({0: 7.5}, 22, 2000, None, 1.23456)}
    cifar10.write_accuracies(results, tmp_path / 'families')
    with open(tmp_path / 'families.csv', newline='') as file:
        assert list(csv.reader(file)) == [
            ['row', 'parameters', 'multiply_adds', 'seed', 'top1_percent', 'training_images_per_second',
             'milliseconds'],
            ['a', '11', '1000', '0', '82.0', '140', ''], ['a', '11', '1000', '1', '80.13', '140', ''],
            ['c', '22', '2000', '0', '7.5', '', '1.235']]


def test_a_folder_is_no_finished_run(tiny_records, tmp_path, capsys):
    (tmp_path / 'mobilenetv1_x0.25-seed0' / 'export').mkdir(parents=True)
    assert main(arguments(tiny_records, tmp_path, '--seeds', '0', '--rows', 'mobilenetv1_x0.25')) == 0
    assert len(epoch_records(tmp_path / 'mobilenetv1_x0.25-seed0')) == 2


def test_other_flags_are_refused_where_there_are_runs(tiny_records, tmp_path, capsys):
    command = arguments(tiny_records, tmp_path, '--seeds', '0', '--rows', 'mobilenetv1_x0.25')
    assert main(command) == 0
    command[command.index('--num-epochs') + 1] = '3'
    assert main(command) == 2
    assert '--num-epochs (was 2, is 3)' in capsys.readouterr().err


def test_stopped_runs_go_on(tiny_records, tmp_path):
    command = arguments(tiny_records, tmp_path / 'stopped', '--seeds', '0', '--rows', 'mobilenetv1_x0.25')
    command[command.index('--num-epochs') + 1] = '200'
    folder = tmp_path / 'stopped' / 'mobilenetv1_x0.25-seed0'
    process = subprocess.Popen([sys.executable, '-m', 'gluon_lprnet', *command], cwd=ROOT)
    while not (folder / 'metrics.jsonl').exists() or len(epoch_records(folder)) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    saved = sorted((folder / 'checkpoints').iterdir())[-1]
    state = json.loads((saved / 'state.json').read_text())
    assert 2 <= state['epoch'] < 200
    done = len(epoch_records(folder))

    process = subprocess.Popen([sys.executable, '-m', 'gluon_lprnet', *command], cwd=ROOT)
    while len(epoch_records(folder)) <= done:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert [record['epoch'] for record in epoch_records(folder)][:done + 1] == list(range(done + 1))


def test_a_row_that_fails_leaves_the_others(tiny_records, tmp_path, capsys, monkeypatch):
    def broken(width):
        experiment = cifar10.table4(width)
        # Each step multiplies the weights by -999.
        diverging = ' --lr 1000 --wd 1 --batch-size 2'
        rows = tuple(row._replace(flags=row.flags + diverging) if row.name == 'table4_lpr_x0.25' else row
                     for row in experiment.rows)
        return experiment._replace(rows=rows)
    monkeypatch.setitem(cifar10.EXPERIMENTS, 'table4', broken)
    assert main(arguments(tiny_records, tmp_path, '--seeds', '0', *ROWS)) == 1
    captured = capsys.readouterr()
    assert 'table4_lpr_x0.25-seed0 failed' in captured.err and 'learning rate' in captured.err
    assert checkpoint.newest(tmp_path / 'mobilenetv1_x0.25-seed0').state['epoch'] == 2


def test_densenet_has_one_width(tiny_records, tmp_path, capsys):
    command = arguments(tiny_records, tmp_path)
    command[1], command[3] = 'irregular', '0.5'
    assert main(command) == 2
    assert 'densenet40_x0.5: no width x0.5; choose from x1.0' in capsys.readouterr().err


def test_unknown_row(tiny_records, tmp_path, capsys):
    assert main(arguments(tiny_records, tmp_path, '--rows', 'dsc')) == 2
    assert 'mobilenetv1_x0.25' in capsys.readouterr().err


def test_curve_of_ranks(tmp_path, monkeypatch):
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *args, **kwargs: (drawn.append(figure),
                                                                            save(figure, *args, **kwargs)))
    titles = {'a': 'LPRNet r = m/4', 'b': 'LPRNet r = m/8', 'c': 'MobileNetV1 x0.5', 'd': 'ShuffleNet x0.5'}
    experiment = cifar10.Experiment('title', tuple(ExperimentRow(*row, '') for row in titles.items()), 'a')
    cifar10.draw_accuracies(experiment, {
        'a': Result({0: 80.0, 1: 82.0}, 1, 10 ** 6, None), 'b': Result({0: 79.5}, 1, 700_000, None),
        'c': Result({1: 78.0, 2: 79.0, 4: 83.0}, 1, 1_300_000, None), 'd': Result({}, 1, 1, None)},
        tmp_path / 'curve.png')
    assert cv2.imread(str(tmp_path / 'curve.png')).std() > 0
    axis, = drawn[0].axes
    assert axis.get_xlabel() == 'multiply-adds (millions)'
    curves = {bar.get_label(): bar for bar in axis.containers}
    # A row without a run has no point.
    assert set(curves) == {'LPRNet', 'MobileNetV1 x0.5'}
    line, _, (ranges,) = curves['LPRNet']
    np.testing.assert_allclose(line.get_xydata(), [[1.0, 81.0], [0.7, 79.5]])
    np.testing.assert_allclose(ranges.get_segments(), [[[1.0, 80.0], [1.0, 82.0]], [[0.7, 79.5], [0.7, 79.5]]])
    line, _, (ranges,) = curves['MobileNetV1 x0.5']
    np.testing.assert_allclose(line.get_xydata(), [[1.3, 80.0]])
    np.testing.assert_allclose(ranges.get_segments(), [[[1.3, 78.0], [1.3, 83.0]]])
    assert {text.get_text(): tuple(text.xy) for text in axis.texts} == {
        'r = m/4': (1.0, 81.0), 'r = m/8': (0.7, 79.5), '': (1.3, 80.0)}

    cifar10.draw_accuracies(experiment, {
        **dict.fromkeys('bd', Result({}, 1, 1, None)), 'a': Result({0: 80.0}, 1, 10 ** 6, None, 2.5),
        'c': Result({0: 79.0}, 1, 1_300_000, None, 2.25)}, tmp_path / 'curves.png')
    _, axis = drawn[1].axes
    assert axis.get_xlabel() == 'milliseconds, one image'
    assert [bar.lines[0].get_xydata().tolist() for bar in axis.containers] == [[[2.5, 80.0]], [[2.25, 79.0]]]


# --- Figure 2

def test_mean_squared_errors():
    rng = np.random.default_rng(0)
    outputs = [rng.normal(size=(300, 4, 3, 3)).astype('float32') for _ in range(3)]
    errors, by_channel = figure2.mean_squared_errors(outputs)
    for i, one in enumerate(outputs):
        for j, other in enumerate(outputs):
            difference = (one.astype('float64') - other) ** 2
            np.testing.assert_allclose(errors[i, j], difference.mean())
            np.testing.assert_allclose(by_channel[i, j], difference.mean(axis=(0, 2, 3)))


def test_the_split_network_is_the_network():
    net = get_model('table4_sconv', width=0.25, classes=10)
    net.initialize(mx.init.Xavier())
    before, module, after, channels = figure2.split(net)
    x = mx.nd.random.normal(shape=(2, 3, 64, 64))
    assert channels == 128 and len(before) > len(after)
    np.testing.assert_array_equal(after(module(before(x))).asnumpy(), net(x).asnumpy())


def standard_convolution(kernel, rng):
    """SConv of a kernel (outputs, inputs, 3, 3), BatchNorm and ReLU."""
    block = SConv(*kernel.shape[1::-1])
    block.initialize()
    for parameter, values in zip(block.collect_params().values(), (
            kernel, rng.uniform(0.5, 2, len(kernel)), *rng.normal(size=(2, len(kernel))),
            rng.uniform(0.5, 2, len(kernel)))):
        parameter.set_data(mx.nd.array(values))
    return block


@pytest.mark.parametrize('name', ['LPR no L2Norm', 'LPR no Residual', 'DSC'])
def test_the_closed_form_is_a_convolution_that_is_of_the_module_s_kind(name):
    """Of a kernel that LPR can have all is the same; DSC's ReLU between its convolutions cuts a little."""
    rng = np.random.default_rng(0)
    width = 16
    low_rank = rng.normal(size=(width, 2)) @ rng.normal(size=(2, width)) / 4
    matrix = {'DSC': rng.normal(size=(width, width)), 'LPR no L2Norm': np.diag(rng.uniform(0.5, 2, width)) + low_rank,
              'LPR no Residual': low_rank}[name]
    original = standard_convolution(np.einsum('oi,ikl->oikl', matrix, rng.normal(size=(width, 3, 3))), rng)
    inputs = rng.normal(1, 2, size=(64, width, 6, 6)).astype('float32')
    module = figure2.MODULES[name](width) if name != 'LPR no Residual' else LPR(width, residual=False, l2_norm=False)
    module.initialize(mx.init.Xavier())
    before = [values.data().asnumpy() for values in original.collect_params().values()]
    begin_near(module, original, inputs)
    wanted, given = (block(mx.nd.array(inputs)).asnumpy() for block in (original, module))
    error = np.mean((given - wanted) ** 2) / np.mean(wanted ** 2)
    # Without the residual nothing behind P2 has a bias, so the mean is only the nearest that P2 P1 can give.
    assert error < {'LPR no L2Norm': 1e-8, 'LPR no Residual': 1, 'DSC': 0.02}[name]
    if name == 'LPR no Residual':
        moving = [values - values.mean(axis=(0, 2, 3), keepdims=True) for values in (
            original[1](original[0](mx.nd.array(inputs))).asnumpy(),
            module.p2(module.p1(module.depthwise(mx.nd.array(inputs)))).asnumpy())]
        np.testing.assert_allclose(*moving, atol=1e-3)
    for values, kept in zip(original.collect_params().values(), before):
        np.testing.assert_array_equal(values.data().asnumpy(), kept)


def test_figure_2(tiny_records, tmp_path, capsys):
    prefix, _, _ = tiny_records
    records = ['--rec-train', f'{prefix}.rec', '--rec-val', f'{prefix}.rec']
    assert main(arguments(tiny_records, tmp_path / 'runs', '--seeds', '0', '--rows', 'table4_sconv_x0.25')) == 0
    run = tmp_path / 'runs' / 'table4_sconv_x0.25-seed0'
    capsys.readouterr()
    command = ['figure2', str(run), *records, '--out', str(tmp_path / 'figure'), '--num-epochs', '2', '--lr', '0.01']
    assert not main(command)
    first = capsys.readouterr().out
    result = json.loads((tmp_path / 'figure' / 'figure2.json').read_text())
    names = ['SConv', *figure2.MODULES]
    assert list(result['mse']) == names and set(result['top1']) == set(names)
    assert all(result['mse'][name][name] == 0 < result['mse']['SConv'][name] for name in names[1:])
    assert (tmp_path / 'figure' / 'figure2.png').stat().st_size > 20000
    assert not [path for path in (tmp_path / 'figure').iterdir() if path.name.startswith('.')]
    # Everything but the module is what it was.
    fixed = mx.nd.load(str(sorted((tmp_path / 'figure' / 'LPR' / 'checkpoints').iterdir())[-1] / 'net.params'))
    original = list(mx.nd.load(str(sorted((run / 'checkpoints').iterdir())[-1] / 'net.params')).values())
    behind = [value.asnumpy() for key, value in fixed.items() if key.startswith('1.')]
    assert len(behind) > 10
    for value, expected in zip(behind, original[-len(behind):]):
        np.testing.assert_array_equal(value, expected.asnumpy())

    assert not main(command)
    assert capsys.readouterr().out == first
    write_records(tmp_path / 'other', list(read_records(f'{prefix}.rec'))[::-1])
    assert main([*command, '--rec-train', str(tmp_path / 'other.rec')]) == 2
    assert 'was trained on other records' in capsys.readouterr().err

    assert not main([*command[:-4], '--num-epochs', '4', '--lr', '0.01', '--match-features', '--out',
                     str(tmp_path / 'matched')])
    errors = [record['mse'] for record in epoch_records(tmp_path / 'matched' / 'DSC')]
    assert len(errors) == 4 and errors[-1] < errors[0]

    assert not main([*command[:-4], '--num-epochs', '1', '--lr', '1e-6', '--closed-form', '--out',
                     str(tmp_path / 'near')])
    near = json.loads((tmp_path / 'near' / 'figure2.json').read_text())['mse']['SConv']
    assert max(near['DSC'], near['LPR no L2Norm']) < 0.5 * near['DSC again']


def test_figure_2_needs_a_standard_convolution(tiny_records, tmp_path, capsys):
    prefix, _, _ = tiny_records
    assert main(arguments(tiny_records, tmp_path / 'runs', '--seeds', '0', '--rows', 'mobilenetv1_x0.25')) == 0
    assert main(['figure2', str(tmp_path / 'runs' / 'mobilenetv1_x0.25-seed0'), '--rec-train', f'{prefix}.rec',
                 '--rec-val', f'{prefix}.rec', '--out', str(tmp_path / 'figure')]) == 2
    assert 'table4_sconv' in capsys.readouterr().err
