"""Reports: what is written can be read back, says what it is, and opens in a browser."""

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
import timm
import torch

import timm_snn
from timm_snn.profiling import CONVENTIONS, NOTICE, Report


@pytest.fixture(scope='module')
def reports() -> list[Report]:
    torch.manual_seed(0)
    from tests.conftest import lively

    images = (torch.rand(3, 1, 28, 28), torch.arange(3))
    models = {
        'msvit & <friends>': lively(timm.create_model('msvit_4_96')),
        'resnet18': timm.create_model('resnet18', in_chans=1),
    }
    return [
        timm_snn.profile(model, images, progress=False, model_name=name, data_name='noise')
        for name, model in models.items()
    ]


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


def test_markdown_is_a_card_with_two_tables(reports):
    text = reports[0].to_markdown()
    assert NOTICE in text and '3 images of 1 x 28 x 28, T = 4, top-1' in text and text == str(reports[0])
    tables = re.findall(r'(?:^\|.*\|\n)+', text, re.M)
    assert len(tables) == 2
    for table in tables:
        assert len({line.count('|') for line in table.splitlines()}) == 1
    assert all(f'\n| {name} |' in text for name in (*CONVENTIONS, 'ANN twin', 'stages.2', 'total'))


def test_the_terminal_table_shows_every_layer(reports):
    console = pytest.importorskip('rich.console')
    file = io.StringIO()
    console.Console(file=file, width=240).print(reports[0].table())
    text = file.getvalue()
    assert all(layer.name in text for layer in reports[0].layers) and text.count(NOTICE) >= 2


@pytest.fixture(scope='module')
def page(reports, tmp_path_factory):
    pytest.importorskip('matplotlib')
    return next(
        path for path in reports[0].save(tmp_path_factory.mktemp('report'), reports[1:]) if path.suffix == '.html'
    )


class TestPage:
    def test_nothing_is_fetched(self, page):
        text = page.read_text()
        assert not re.search(r'<(script|link|img|iframe)|@import|url\((?!#)|\bsrc=', text)
        links = {link for link in re.findall(r'href="([^#"]+)"', text) if not link.startswith('data:')}
        assert links == {'https://arxiv.org/abs/2409.08290'}  # to click on
        assert '$' not in text

    def test_ids_are_unique_and_names_escaped(self, page):
        text = page.read_text()
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(ids) == len(set(ids)) and set(re.findall(r'url\(#([^)]+)\)', text)) <= set(ids)
        assert 'msvit &amp; &lt;friends&gt;' in text and '<friends>' not in text

    def test_a_browser_shows_it(self, page, tmp_path):
        browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
        if browser is None:
            pytest.skip('needs chromium or google-chrome on the PATH')
        flags = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
        flags += '--disable-component-update --disable-sync --virtual-time-budget=2000'
        command = [browser, *flags.split(), f'--user-data-dir={tmp_path}', '--dump-dom', page.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        assert dom.count('<svg') == 4 and dom.count('<table>') == 4
        shown = re.sub(r'<[^>]+>', ' ', dom.split('<main>')[1])
        for text in (
            'msvit &amp; &lt;friends&gt;',
            'resnet18',
            'Energy by convention',
            NOTICE,
            'stages.2.blocks.1.mlp.fc2',
        ):
            assert text in shown

    def test_models_without_spikes_have_one_too(self, reports):
        assert 'This model has no spiking neurons.' in reports[1].to_html()


def test_other_prices_are_not_compared(reports):
    with pytest.raises(ValueError, match=r'resnet18 was priced at 1\.5 and 0\.9 pJ .* here they are 4\.6'):
        reports[0].to_html([replace(reports[1], mac_pj=1.5)])


def test_a_missing_library_says_what_to_install(reports, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs rich: pip install 'timm-snn\[profile\]'"):
        reports[0].table()
    with pytest.raises(ModuleNotFoundError, match='needs matplotlib'):
        reports[0].to_html()
