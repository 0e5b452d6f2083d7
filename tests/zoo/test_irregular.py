"""Irregular kernels: their two forms in NumPy, the conversions, and the counts of DenseNet-40."""
import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from reference.modules import conv
from reference.networks import assert_same_in_every_form, operators, random_images, random_network, relative_error

from gluon_lprnet import get_model
from gluon_lprnet.complexity import count
from gluon_lprnet.deployment.reparametrize import reparametrize
from gluon_lprnet.graph import as_block, trace
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.zoo.irregular import LENGTHS, RelaxedConv, SegmentConv, segments

NAME = 'irregular_densenet40_x1.0'


def on_a_line(positions):
    """Whether positions of a 3x3 kernel are neighbors, each of the next one in the same direction."""
    places = np.array([divmod(position, 3) for position in positions])
    steps = np.diff(places, axis=0)
    return len(steps) == 0 or (steps == steps[0]).all() and abs(steps[0]).max() == 1


@pytest.mark.parametrize('length, number', [(1, 9), (2, 20), (3, 8)])
def test_candidates_are_the_segments_of_the_kernel(length, number):
    found = segments(length)
    assert found.shape == (number, length)
    assert len({frozenset(segment) for segment in found.tolist()}) == number
    assert all(on_a_line(segment) for segment in found)
    # All there are: of the sets of positions no other one is on a line.
    grid = np.stack(np.meshgrid(*[range(9)] * length), -1).reshape(-1, length)
    assert {frozenset(each) for each in grid.tolist() if len(set(each)) == length and on_a_line(each)} == {
        frozenset(segment) for segment in found.tolist()}


@pytest.mark.parametrize('length', [0, 4])
def test_lengths_that_no_segment_has(length):
    with pytest.raises(InputError, match='from 1 to 3'):
        segments(length)


def relaxed_conv(length, dtype='float64'):
    block = RelaxedConv(5, 4, length)
    block.initialize()
    block.cast(dtype)
    block.weight.set_data(mx.nd.array(np.random.default_rng(0).normal(0, 0.1, block.weight.shape), dtype=dtype))
    return block


X = np.random.default_rng(1).normal(0, 1, (2, 5, 6, 7))


def relaxed_kernel(weight, length, sharpness):
    """By its definition, slice by slice."""
    kernel = np.zeros_like(weight)
    for place in np.ndindex(weight.shape[:2]):
        slice_ = weight[place].ravel()
        energies = [(slice_[segment] ** 2).sum() for segment in segments(length)]
        shares = [max((energy / max(energies)) ** sharpness, np.exp(-20)) for energy in energies]
        for position in range(9):
            share = sum(share for share, segment in zip(shares, segments(length)) if position in segment)
            kernel[place].flat[position] = slice_[position] * min(share, 1)
    return kernel


@pytest.mark.parametrize('length', [1, 2, 3])
@pytest.mark.parametrize('sharpness', [0, 0.5, 4])
def test_relaxed_choice(length, sharpness):
    block = relaxed_conv(length)
    block.sharpen(sharpness)
    weight = block.weight.data().asnumpy()
    expected = conv(X, relaxed_kernel(weight, length, sharpness))
    np.testing.assert_allclose(block(mx.nd.array(X, dtype='float64')).asnumpy(), expected, rtol=1e-6, atol=1e-9)
    # Without sharpness it is the square kernel.
    assert (relative_error(expected, conv(X, weight)) < 1e-12) == (sharpness == 0)


@pytest.mark.parametrize('length', [1, 2, 3])
def test_the_choice_is_learned_with_the_weights(length):
    """The gradient of the weights has that through the shares in it: against differences of the definition."""
    block = relaxed_conv(length)
    block.sharpen(2)
    x = mx.nd.array(X, dtype='float64')
    with autograd.record():
        (block(x) ** 2).sum().backward()
    weight, gradient = block.weight.data().asnumpy(), block.weight.grad().asnumpy()
    for place in [(0, 0, 0, 0), (1, 2, 1, 1), (3, 4, 2, 0), (2, 1, 0, 1)]:
        outputs = []
        for sign in (1, -1):
            moved = weight.copy()
            moved[place] += sign * 1e-6
            outputs.append((conv(X, relaxed_kernel(moved, length, 2)) ** 2).sum())
        np.testing.assert_allclose(gradient[place], (outputs[0] - outputs[1]) / 2e-6, rtol=1e-4, atol=1e-5)


def test_no_weight_is_so_small_that_processors_are_slow():
    block = RelaxedConv(64, 12, 2)
    block.initialize()
    # Of sizes as far apart as a training makes them.
    block.weight.set_data(mx.nd.array(10 ** np.random.default_rng(0).uniform(-4, 0, block.weight.shape)))
    block.hybridize()
    # Each picture shows what one channel of input adds: the kernel itself.
    pictures = np.zeros((64, 64, 5, 5), 'float32')
    pictures[range(64), range(64), 2, 2] = 1
    for sharpness in range(2, 17, 2):
        block.sharpen(sharpness)
        kernel = abs(block(mx.nd.array(pictures)).asnumpy())
        assert not ((kernel > 0) & (kernel < np.finfo('float32').tiny)).any()


@pytest.mark.parametrize('length', [1, 2, 3])
def test_hardening_leaves_one_segment_in_each_slice(length):
    block = relaxed_conv(length)
    block.sharpen(7)
    weight = block.weight.data().asnumpy()
    assert not block.hardened
    block.harden()
    assert block.hardened
    left = block.mask.data().asnumpy().reshape(4, 5, 9)
    for place in np.ndindex(4, 5):
        energies = [(weight[place].ravel()[segment] ** 2).sum() for segment in segments(length)]
        assert set(np.flatnonzero(left[place])) == set(segments(length)[np.argmax(energies)])
    x = mx.nd.array(X, dtype='float64')
    with autograd.record():
        output = block(x)
        output.sum().backward()
    np.testing.assert_allclose(output.asnumpy(), conv(X, weight * left.reshape(weight.shape)), rtol=1e-6, atol=1e-9)
    # What is left out gets no gradient, so that it stays out, even where a slice's weights are 0.
    gradient = block.weight.grad().asnumpy()
    assert (gradient[left.reshape(weight.shape) == 0] == 0).all()
    assert (gradient[left.reshape(weight.shape) == 1] != 0).all()
    block.weight.set_data(mx.nd.zeros(weight.shape, dtype='float64'))
    with autograd.record():
        block(x).sum().backward()
    np.testing.assert_allclose(block.weight.grad().asnumpy(), gradient, rtol=1e-6)


@pytest.mark.parametrize('length', [1, 2, 3])
def test_form_for_inference(length):
    relaxed, block = relaxed_conv(length), SegmentConv(5, 4, length)
    block.initialize()
    block.cast('float64')
    relaxed.harden()
    block.take_from(relaxed)
    segment, weight = block.segment.data().asnumpy(), block.weight.data().asnumpy()
    assert (segment.dtype, segment.shape, weight.shape) == (np.uint8, (4, 5), (4, 5, length))
    kernel = np.zeros((4, 5, 9))
    for place in np.ndindex(4, 5):
        kernel[place][segments(length)[segment[place]]] = weight[place]
    x = mx.nd.array(X, dtype='float64')
    found = block(x).asnumpy()
    np.testing.assert_allclose(found, conv(X, kernel.reshape(4, 5, 3, 3)), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found, relaxed(x).asnumpy(), rtol=1e-6, atol=1e-9)
    # Where all weights of a slice have become 0, its energies no longer tell which segment was chosen.
    values, mask = relaxed.weight.data().asnumpy(), relaxed.mask.data().asnumpy()
    values[0][mask[0] == 1] = 0
    relaxed.weight.set_data(mx.nd.array(values, dtype='float64'))
    block.take_from(relaxed)
    np.testing.assert_allclose(block(x).asnumpy(), relaxed(x).asnumpy(), rtol=1e-6, atol=1e-9)
    complexity = count(block, (1, 5, 6, 7))
    assert (complexity.params, complexity.multiply_adds, complexity.unknown) == (
        20 * length, 20 * length * 6 * 7, {})


def test_counts_of_the_abstract():
    """69% fewer parameters and 59% fewer calculations: both are reached."""
    square, irregular = (count(get_model(name, classes=10), (1, 3, 32, 32)) for name in ('densenet40_x1.0', NAME))
    assert (square.params, irregular.unknown) == (1_019_722, {})
    # The slices of three blocks of twelve layers of 12 channels, whose feature maps are 32, 16 and 8 wide.
    fewer_params = fewer_products = 0
    for length, size, first in zip(LENGTHS, (32, 16, 8), (16, 160, 304)):
        slices = 12 * sum(first + 12 * layer for layer in range(12))
        fewer_params += slices * (9 - length)
        fewer_products += slices * (9 - length) * size ** 2
    assert square.params - irregular.params == fewer_params > 0.69 * square.params
    assert square.multiply_adds - irregular.multiply_adds == fewer_products > 0.59 * square.multiply_adds


def hardened_network():
    net = random_network(NAME, relaxed=True)
    net.harden()
    return net


def test_begins_as_the_square_network_that_it_takes_weights_of():
    square = random_network('densenet40_x1.0')
    net = get_model(NAME, classes=10, relaxed=True)
    net.initialize()
    taken = net._collect_params_with_prefix()
    for name, parameter in square._collect_params_with_prefix().items():
        taken[name].set_data(parameter.data())
    x = random_images(2, 16)
    assert relative_error(net(x).asnumpy(), square(x).asnumpy()) < 1e-5
    assert not net.chosen
    with pytest.raises(InputError, match='has not hardened'):
        net.converted()


def test_converted_network_is_the_same_function():
    net = hardened_network()
    x = random_images(2, 16)
    converted = net.converted()
    assert relative_error(converted(x).asnumpy(), net(x).asnumpy()) < 1e-5
    for wrong in (converted.harden, lambda: converted.sharpen(1), converted.converted):
        with pytest.raises(InputError, match='form for inference'):
            wrong()


def test_every_way_out(tmp_path):
    """A symbol in stock MXNet, with its fused backend, in ONNX Runtime and deployed: the same outputs."""
    pytest.importorskip('onnxruntime')
    net = hardened_network().converted()
    x = random_images(2, 16)
    expected = net(x).asnumpy()
    assert abs(expected[0] - expected[1]).max() > 1e-3 * abs(expected).max()
    assert operators(net(mx.sym.var('data')))['take'] == 2 * 36
    assert_same_in_every_form(net, x, tmp_path)


@pytest.mark.parametrize('length', [1, 2, 3])
def test_deployed_kernels_are_squares_again(length):
    """By the definition of segments, to the last bit; and the same function."""
    relaxed, block = relaxed_conv(length, 'float32'), SegmentConv(5, 4, length)
    block.initialize()
    relaxed.harden()
    block.take_from(relaxed)
    symbol, params = reparametrize(*trace(block))
    assert operators(symbol) == {'Convolution': 1}
    kernel = np.zeros((4, 5, 9), 'float32')
    for place in np.ndindex(4, 5):
        kernel[place][segments(length)[block.segment.data().asnumpy()[place]]] = block.weight.data().asnumpy()[place]
    (found,) = params.values()
    np.testing.assert_array_equal(found.asnumpy(), kernel.reshape(4, 5, 3, 3))
    x = mx.nd.array(X, dtype='float32')
    assert relative_error(as_block(symbol, params)(x).asnumpy(), block(x).asnumpy()) < 1e-6


def test_deployed_network_has_the_counts_of_the_square_one():
    net = hardened_network().converted()
    x = random_images(2, 16)
    symbol, params = reparametrize(*trace(net))
    assert not {'take', 'Pad', 'slice_axis'} & operators(symbol).keys()
    square = count(reparametrize(*trace(random_network('densenet40_x1.0')))[0], (1, 3, 32, 32))
    found = count(symbol, (1, 3, 32, 32))
    assert (found.params, found.multiply_adds) == (square.params, square.multiply_adds)
    assert relative_error(as_block(symbol, params)(x).asnumpy(), net(x).asnumpy()) < 1e-5


def test_file_has_a_byte_and_the_weights_of_each_slice(tmp_path):
    net = hardened_network().converted()
    net.save_parameters(str(tmp_path / 'net.params'))
    complexity = count(net, (1, 3, 32, 32))
    slices = sum(layer.body[-1].segment.shape[0] * layer.body[-1].segment.shape[1]
                 for layer in net.features if hasattr(layer, 'body'))
    expected = 4 * (complexity.params + complexity.auxiliary) + slices
    assert slices == 97_632
    # Names, shapes, and the numbers of candidates and of inputs.
    assert expected < (tmp_path / 'net.params').stat().st_size < expected + 60_000
