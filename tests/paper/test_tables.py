"""The paper's tables beside the counts."""
import argparse
import json

import pytest

from gluon_lprnet import get_model
from gluon_lprnet.paper import tables
from gluon_lprnet.utils.errors import InputError


@pytest.fixture(scope='module')
def table():
    """The rows of all tables by number and name in the paper."""
    return {number: {row['name']: row for row in tables.compared_rows(number)} for number in tables.TABLE_NUMBERS}


def run(*arguments):
    parser = argparse.ArgumentParser()
    tables.add_commands(parser.add_subparsers())
    args = parser.parse_args(['tables', *arguments])
    return args.run(args)


@pytest.mark.parametrize('printed, counted, expected', [
    ('2.3M', 2300000, 'yes'), ('2.3M', 2349999, 'yes'), ('2.3M', 2350000, 'truncated'),
    ('2.3M', 2399999, 'truncated'), ('2.3M', 2250000, 'rounded'), ('2.3M', 2249999, 'no'),
    ('2.3M', 2400000, 'no'), ('869K', 869896, 'truncated'), ('870K', 869896, 'rounded'),
    ('260M', 260459008, 'yes'), ('18,688', 18688, 'yes'), ('18,688', 18689, 'no')])
def test_follows(printed, counted, expected):
    assert tables.follows(printed, counted) == expected


def test_table_2_to_the_last_digit(table):
    counted = {name: (row['multiply_adds'].counted, row['params'].counted) for name, row in table[2].items()}
    assert counted == {
        'SConv': (115605504, 589824),
        'DSC': (13296640, 67840),
        'Mobilev2': (14 * 14 * (2 * 4 * 256 * 256 + 9 * 4 * 256), 2 * 4 * 256 * 256 + 9 * 4 * 256),
        'Shufflev2': (6648320, 33920),
        'LPR': (3662848, 18688),
    }
    for name, row in table[2].items():
        follows = 'no' if name == 'Mobilev2' else 'yes'
        assert (row['multiply_adds'].follows, row['params'].follows) == (follows, follows)
    # The printed formula, computed, gives the printed numbers.
    assert table[2]['Mobilev2']['multiply_adds'].printed == '66,031,616'
    assert '336,896 parameters and 66,031,616 multiply-adds' in table[2]['Mobilev2']['note']


def test_table_3(table):
    counted = {name: (row['multiply_adds'].counted, row['params'].counted) for name, row in table[3].items()}
    assert counted == {'r = m/4': (363219456, 3003432), 'r = m/8': (260459008, 2393128),
                       'r = m/16': (209078784, 2087976), 'MobileNet': (568740352, 4231976)}
    for name in ('r = m/4', 'r = m/8', 'r = m/16'):
        assert table[3][name]['multiply_adds'].follows == 'yes'
        assert table[3][name]['params'].follows in ('yes', 'truncated')
    assert '568,740,352 + 5,042,688 = 573,783,040' in table[3]['MobileNet']['note']


def test_table_5_has_every_network_of_the_paper(table):
    assert len(table[5]) == 30
    assert [name for name, row in table[5].items() if row['model'] is None] == ['ShuffleNetv2 x0.25']
    for row in table[5].values():
        assert row['multiply_adds'].printed.endswith('M') and row['params'].printed[-1] in 'KM'
        if row['model']:
            get_model(row['model'])
            # CondenseNet has one width, which the paper does not name.
            assert row['model'].endswith(row['name'].split()[-1]) or row['name'] == 'CondenseNet'


def test_lprnet_in_table_5(table):
    rows = {name: row for name, row in table[5].items() if name.startswith('LPRNet')}
    assert {name: row['multiply_adds'].counted for name, row in rows.items()} == {
        'LPRNet MobileNet x0.25': 21762688, 'LPRNet MobileNet x0.5': 72426752,
        'LPRNet MobileNet x1.0': 260459008, 'LPRNet MobileNet x1.25': 397827200,
        'LPRNet MobileNet x1.5': 564096768, 'LPRNet ShuffleNet2 x1.0': 113316320,
        'LPRNet ShuffleNet2 x2.0': 437222880}
    follows = {name for name, row in rows.items() if row['multiply_adds'].follows == 'yes'}
    assert follows == {'LPRNet MobileNet x1.0', 'LPRNet ShuffleNet2 x1.0', 'LPRNet ShuffleNet2 x2.0'}
    # The slip that the notes describe does lead to what is printed, truncated.
    for name in set(rows) - follows:
        explained = int(rows[name]['note'].split(' = ')[2].split('.')[0].replace(',', ''))
        assert tables.follows(rows[name]['multiply_adds'].printed, explained) in ('yes', 'truncated')


def test_the_wider_last_layer_of_shufflenetv2(table):
    assert '7,601,686 parameters' in table[5]['ShuffleNetv2 x2.0']['note']
    assert table[5]['ShuffleNetv2 x2.0']['params'].counted == 7393996


def test_networks_counted_with_batch_norm_in_the_printed_table(table):
    """Their multiply-adds are printed with other operations among them; their parameters follow."""
    for name in ('IGCV3 x0.5', 'IGCV3 x1.0', 'ESPNetv2 x1.0', 'ESPNetv2 x2.0', 'CondenseNet'):
        row = table[5][name]
        assert -0.13 < row['multiply_adds'].deviation < -0.05
        assert abs(row['params'].deviation) < 0.03
        assert f'For {row["multiply_adds"].printed}: ' in row['note']


def test_what_does_not_follow_has_a_note(table):
    for rows in table.values():
        for row in rows.values():
            if 'no' in (row['multiply_adds'].follows, row['params'].follows):
                assert row['note'], row['name']


def test_deviation(table):
    assert table[5]['MobileNetv1 x0.75']['params'].deviation == pytest.approx(2585560 / 3.6e6 - 1)
    assert table[2]['LPR']['params'].deviation == 0


def test_unknown_table():
    with pytest.raises(InputError, match='no Table 4 .*2, 3, 5'):
        tables.compared_rows(4)
    with pytest.raises(InputError, match='no Table 4'):
        run('4')


def test_command_prints_the_tables_asked_for(capsys):
    assert not run('3', '2')
    text = capsys.readouterr().out
    assert text.index('Table 3') < text.index('Table 2:') and 'Table 5' not in text
    assert '363,219,456' in text and '[1] The printed' in text
    run('--format', 'markdown')
    markdown = capsys.readouterr().out
    assert all(f'Table {number}: ' in markdown for number in (2, 3, 5))
    assert sum(line.startswith('|') for line in markdown.splitlines()) == 2 * 3 + 5 + 4 + 30
    run('5', '--format', 'json')
    (found,) = json.loads(capsys.readouterr().out)
    rows = {row['name']: row for row in found['rows']}
    assert rows['LPRNet MobileNet x1.0']['params'] == {
        'printed': '2.3M', 'counted': 2393128, 'deviation': pytest.approx(0.0405, abs=1e-4),
        'follows': 'truncated'}
    assert rows['ShuffleNetv2 x0.25']['multiply_adds'] == {
        'printed': '14M', 'counted': None, 'deviation': None, 'follows': None}
