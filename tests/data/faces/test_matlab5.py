"""MATLAB files as SciPy writes them, sound and damaged."""
import numpy as np
import pytest
import scipy.io

from gluon_lprnet.data.faces.matlab5 import read_matrices

VARIABLES = {
    'pt3d_68': np.random.default_rng(0).normal(0, 100, (3, 68)),
    'Pose_Para': np.random.default_rng(1).normal(0, 1, (1, 7)).astype('float32'),
    'roi': np.array([[1, 2, 300, 4]], 'int16'), 'tiny': np.array([[1, 2]], 'uint8'), 'empty': np.zeros((0, 3)),
    'cube': np.arange(24.0).reshape(2, 3, 4), 'text': 'a text', 'cell': np.array([[1], 'two'], dtype=object),
    'complex': np.array([[1 + 2j]]), 'large': np.arange(9, dtype='int64').reshape(3, 3)}
NUMBERS = set(VARIABLES) - {'text', 'cell', 'complex'}


@pytest.mark.parametrize('compressed', [False, True])
def test_numbers_are_those_written(tmp_path, compressed):
    scipy.io.savemat(tmp_path / 'a.mat', VARIABLES, do_compression=compressed)
    found = read_matrices(tmp_path / 'a.mat', NUMBERS)
    assert found.keys() == NUMBERS
    for name, values in found.items():
        np.testing.assert_array_equal(values, VARIABLES[name])
    assert read_matrices(tmp_path / 'a.mat', ['roi', 'none']).keys() == {'roi'}
    for name in ('text', 'cell', 'complex'):
        with pytest.raises(ValueError, match=f'has {name} that are not numbers'):
            read_matrices(tmp_path / 'a.mat', [name])


@pytest.mark.parametrize('compressed', [False, True])
def test_damaged_files_are_refused_or_read(tmp_path, compressed):
    """SciPy ends the process on some of them: of every byte changed and every length cut, none does here."""
    scipy.io.savemat(tmp_path / 'a.mat', {'Pose_Para': VARIABLES['Pose_Para']}, do_compression=compressed)
    data = (tmp_path / 'a.mat').read_bytes()
    assert data[124:128] == b'\0\x01IM'
    refused = 0
    for place in range(124, len(data)):
        for changed in (data[:place] + bytes([data[place] ^ 0x19]) + data[place + 1:], data[:place]):
            (tmp_path / 'b.mat').write_bytes(changed)
            try:
                found = read_matrices(tmp_path / 'b.mat', ['Pose_Para'])
            except ValueError:
                refused += 1
            else:
                assert all(values.dtype == 'float64' for values in found.values())
    assert refused > (len(data) - 124)
    scipy.io.savemat(tmp_path / 'old.mat', {'a': VARIABLES['roi']}, format='4')
    with pytest.raises(ValueError, match='no header of version 5'):
        read_matrices(tmp_path / 'old.mat', ['a'])
