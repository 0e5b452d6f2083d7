"""What the paper prints, copied from it row by row, against what the package says that it prints."""
import pytest

from gluon_lprnet.paper import cifar10, table6
from gluon_lprnet.paper.tables import compared_rows

# Table 2 in multiply-adds and parameters; Tables 3 and 5 in FLOPs and parameters.
COUNTED = {
    2: """SConv 115,605,504 589,824
          DSC 13,296,640 67,840
          Shufflev2 6,648,320 33,920
          Mobilev2 66,031,616 336,896
          LPR 3,662,848 18,688""",
    3: """r = m/4 363M 3.0M
          r = m/8 260M 2.3M
          r = m/16 209M 2.0M
          MobileNet 574M 4.2M""",
    5: """ShuffleNetv1 x0.25 13M 368K
          ShuffleNetv1 x0.5 41M 718K
          ShuffleNetv1 x1.0 140M 2.2M
          ShuffleNetv1 x1.5 292M 3.4M
          ShuffleNetv1 x2.0 524M 5.4M
          ShuffleNetv2 x0.25 14M 587K
          ShuffleNetv2 x1.0 149M 2.3M
          ShuffleNetv2 x2.0 595M 7.6M
          LPRNet ShuffleNet2 x1.0 113M 2.0M
          LPRNet ShuffleNet2 x2.0 437M 6.2M
          MobileNetv1 x0.25 42M 470K
          MobileNetv1 x0.5 152M 1.3M
          MobileNetv1 x0.75 325M 3.6M
          MobileNetv1 x1.0 574M 4.2M
          MobileNetv2 x0.5 100M 1.9M
          MobileNetv2 x1.0 301M 3.5M
          MobileNetv2 x1.4 585M 6.9M
          LPRNet MobileNet x0.25 26M 356K
          LPRNet MobileNet x0.5 78M 869K
          LPRNet MobileNet x1.0 260M 2.3M
          LPRNet MobileNet x1.25 389M 3.4M
          LPRNet MobileNet x1.5 544M 4.5M
          IGCV3 x0.5 111M 2.0M
          IGCV3 x0.75 210M 2.6M
          IGCV3 x1.0 340M 3.4M
          ESPNetv2 x1.0 98M 1.7M
          ESPNetv2 x1.25 138M 1.9M
          ESPNetv2 x1.5 185M 2.3M
          ESPNetv2 x2.0 306M 3.5M
          CondenseNet 291M 2.9M""",
}
TABLE_4 = """SConv 92.1 11M
             DSC Module 91.8 3.1M
             LPR Module (no Residual) 88.5 2.4M
             LPR Module (no L2Norm) 90.6 2.4M
             LPR Module 91.8 2.4M"""
# NME of the bins, their mean, frames per second on the CPU, size.
TABLE_6 = """LPRNet MobileNet x0.25 2.58 3.33 5.81 3.89 95 619K
             LPRNet MobileNet x0.5 2.41 3.15 5.52 3.69 52 1.6M
             ShuffleNetv2 x0.5 2.54 3.32 5.51 3.79 51 3.3M
             ShuffleNetv1 x0.5 3.03 4.01 6.07 4.37 104 2.1M
             MobileNetv2 x0.5 2.51 3.15 5.53 3.73 40 2.3M
             MobileNetv1 x0.5 2.52 3.21 5.76 3.85 42 2.5M"""


def rows(text, columns):
    return {name: numbers for name, *numbers in (line.strip().rsplit(' ', columns) for line in text.splitlines())}


@pytest.mark.parametrize('number', COUNTED)
def test_tables_of_complexity(number):
    assert {row['name']: [row['multiply_adds'].printed, row['params'].printed]
            for row in compared_rows(number)} == rows(COUNTED[number], 2)


def test_table_4():
    assert {row.title: [str(printed) for printed in row.printed]
            for row in cifar10.table4(1.0).rows if row.printed} == rows(TABLE_4, 2)


def test_table_6():
    assert {row.name: [*(f'{nme:.2f}' for nme in (*row.bin_nme, row.mean)), str(row.fps), row.size]
            for row in table6.PRINTED.values()} == rows(TABLE_6, 6)
