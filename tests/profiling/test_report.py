"""Reports are data: what is written can be read back and says what it is."""

import csv
import io
import json

import pytest

from timm_snn.profiling import NOTICE, Report


def test_json_comes_back_the_same(reports):
    for report in reports:
        assert Report.from_json(report.to_json()) == report
        assert json.loads(report.to_json())['notice'] == NOTICE


@pytest.mark.parametrize('text', ['', '{}', '[1]', '{"layers": 3, "stages": []}'])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match='no report of this version'):
        Report.from_json(text)


def test_csv_has_a_row_per_layer_and_says_what_energies_are(reports):
    rows = list(csv.DictReader(io.StringIO(reports[0].to_csv())))
    assert [row['name'] for row in rows] == [layer.name for layer in reports[0].layers] + ['total']
    energies = [name for name in rows[0] if 'mJ' in name]
    assert len(energies) == 4 and all(NOTICE in name for name in energies)
    for name in energies:
        assert sum(float(row[name]) for row in rows[:-1]) == pytest.approx(float(rows[-1][name]))
    assert float(rows[0]['firing_rate']) == reports[0].layers[0].firing_rate
    assert len(rows[0]['rate_by_step'].split()) == 4
