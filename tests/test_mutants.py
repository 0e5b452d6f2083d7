"""The faults of ``python tests/mutants.py`` can still be put in; to find them is that command's job."""
import pytest
from mutants import MUTANTS, ROOT


@pytest.mark.parametrize('mutant', MUTANTS, ids=lambda mutant: mutant.name)
def test_the_line_of_a_fault_is_there_once(mutant):
    assert (ROOT / 'gluon_lprnet' / mutant.file).read_text().count(mutant.old) == 1


def test_the_table_of_the_guide_has_every_fault():
    guide = (ROOT / 'docs' / 'mutants.md').read_text()
    rows = [line for line in guide.splitlines() if line.startswith('| ')][1:]
    assert [row.split(' | ')[0].strip('| ') for row in rows] == [mutant.name for mutant in MUTANTS]
