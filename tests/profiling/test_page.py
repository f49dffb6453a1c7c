"""The page of a report opens in a browser and fetches nothing."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from timm_snn.profiling import NOTICE


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
