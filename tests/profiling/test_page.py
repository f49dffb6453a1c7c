"""The page of a report opens in a browser, on a phone too, and fetches nothing."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from timm_snn.profiling import CONVENTIONS, NOTICE
from timm_snn.profiling.svg import Mark, Row, dots

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = (
    *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--virtual-time-budget=2000'),
    '--allow-file-access-from-files',  # the frame looks into its page
    *('--disable-background-networking', '--disable-component-update', '--disable-sync'),
)
# of the window, of the page, the smallest letters of plots, and letters of plots that are cut off at a side
MEASURE = """<script>
addEventListener('load', () => {
  const texts = [...document.querySelectorAll('figure text')]
  const boxes = texts.map(text => text.getBoundingClientRect())
  document.documentElement.dataset.found = JSON.stringify({
    window: innerWidth, page: document.documentElement.scrollWidth,
    letters: Math.min(...texts.map(text => parseFloat(getComputedStyle(text).fontSize))),
    cut: texts.filter((_, i) => boxes[i].left < -1 || boxes[i].right > innerWidth + 1).map(text => text.textContent)})
})</script>"""


@pytest.fixture(scope='module')
def page(reports, tmp_path_factory):
    return next(
        path for path in reports[0].save(tmp_path_factory.mktemp('report'), reports[1:]) if path.suffix == '.html'
    )


def opened(page, profile, width=1280):
    """The page as a browser has it."""
    if CHROMIUM is None:
        pytest.skip('needs chromium or google-chrome on the PATH')
    command = [CHROMIUM, *FLAGS, f'--window-size={width},900', f'--user-data-dir={profile}', '--dump-dom']
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout


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
        assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
        assert 'msvit &amp; &lt;friends&gt;' in text and '<friends>' not in text

    def test_a_browser_shows_it(self, page, tmp_path):
        dom = opened(page, tmp_path)
        assert dom.count('<table>') == 5
        shown = re.sub(r'<[^>]+>', ' ', dom.split('<main>')[1])
        for text in ('msvit &amp; &lt;friends&gt;', 'resnet18', NOTICE, 'What is not counted', 'blocks.1.mlp.fc2'):
            assert text in shown

    @pytest.mark.parametrize('width', [390, 1280])
    def test_it_is_no_wider_than_the_window_and_its_plots_can_be_read(self, page, tmp_path, width):
        """Under a frame of this width, since a window of Chromium may not get as narrow as a phone."""
        copy, outer = tmp_path / 'page.html', tmp_path / 'frame.html'
        copy.write_text(page.read_text() + MEASURE)
        outer.write_text(
            f'<iframe width="{width}" height="900" src="page.html"></iframe><script>'
            'onload = () => document.body.dataset.found ='
            ' document.querySelector("iframe").contentDocument.documentElement.dataset.found</script>'
        )
        dom = opened(outer, tmp_path / 'profile')
        found = json.loads(re.search(r'data-found="([^"]+)"', dom)[1].replace('&quot;', '"'))
        assert found['window'] == width
        assert found['page'] <= width
        assert found['letters'] >= 11
        assert found['cut'] == []

    def test_plots_say_in_words_what_they_show(self, page, reports):
        text = page.read_text()
        plots = re.findall(r'<svg role="img" aria-label="([^"]+)"', text)
        stages = {layer.stage for layer in reports[0].layers if layer.rate_by_step}
        assert len(plots) == 3 + len(stages)
        for name in CONVENTIONS:
            assert f'{name} {reports[0].energy[name].mj:.3g} mJ per sample' in plots[0]
        # all others are parts of these, or beside their name in the text
        svgs = re.findall(r'<svg [^>]*>', text)
        assert all('role="img"' in svg or 'aria-hidden' in svg or 'overflow="visible"' in svg for svg in svgs)

    def test_numbers_have_units(self, page):
        text = page.read_text()
        assert text.count('mJ per sample, logarithmic axis</text>') == 3
        headers = re.findall(r'<th scope="col">([^<]*)</th>', text)
        energies = [name for name in headers if re.match(r'(A|B|C|ANN twin)\b', name)]
        assert energies and all(name.endswith(', mJ') for name in energies)
        assert {'rate, %', 'top-1, %', 'T, steps', 'MACs/step', 'matmul ops'} <= set(headers)
        facts = re.findall(r'<div class="fact"><b>([^<]+)</b>', text)
        assert len(facts) == 5 and all(re.fullmatch(r'[\d.]+ [%x]', fact) for fact in facts)

    def test_tables_scroll_in_boxes_of_their_own(self, page):
        text = page.read_text()
        assert text.count('<table>') == len(re.findall(r'<div class="scroll"[^>]*><table>', text)) == 5

    def test_it_follows_dark_mode_and_prints(self, page):
        text = page.read_text()
        assert '@media (prefers-color-scheme: dark)' in text and '@media print' in text

    def test_models_without_spikes_have_one_too(self, reports):
        assert 'This model has no spiking neurons.' in reports[1].to_html()


def test_other_prices_are_not_compared(reports):
    with pytest.raises(ValueError, match=r'resnet18 was priced at 1\.5 and 0\.9 pJ .* here they are 4\.6'):
        reports[0].to_html([replace(reports[1], mac_pj=1.5)])


def test_marks_are_placed_by_the_logarithm():
    rows = [Row('one', '', [Mark('A', 1.0), Mark('B', 10.0), Mark('C', 100.0), Mark('ANN twin', 0.0)])]
    places = re.findall(r'<svg x="([\d.]+)%"', dots(rows, 'mJ', 'title'))
    assert [float(place) for place in places] == [4, 50, 96]  # and nothing for zero
    assert 'all values are zero' in dots([Row('none', '', [Mark('A', 0.0)])], 'mJ', 'title')
