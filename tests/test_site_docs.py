"""The documentation site is whole, shows every public name, and loads nothing from elsewhere."""

import ast
import html
import importlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip('material', reason="needs pip install -e '.[docs]'")
pytest.importorskip('mkdocstrings', reason="needs pip install -e '.[docs]'")
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[1]
PUBLIC = [
    'timm_snn',
    'timm_snn.data',
    'timm_snn.dense',
    'timm_snn.export',
    'timm_snn.layers',
    'timm_snn.models',
    'timm_snn.ops',
    'timm_snn.profiling',
    'timm_snn.testing',
    'timm_snn.training.tasks',
]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Its folder. A warning of the build is an error: of a page that no menu names, of a link that leads nowhere."""
    folder = tmp_path_factory.mktemp('site')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('NO_MKDOCS_2_WARNING', '1')
        patch.setenv('REPO_URL', 'https://example.org/lab/timm_snn')
        config = load_config(str(ROOT / 'mkdocs.yml'), site_dir=str(folder))
        assert config.strict
        build(config)
    return folder


def test_every_page_is_built(site):
    docs = ROOT / 'docs'
    pages = {path.relative_to(docs).with_suffix('') for end in ('md', 'ipynb') for path in docs.rglob(f'*.{end}')}
    outside = {Path(name) for name in ('recipes', 'publishing', 'contributing', 'changelog')}
    built = {path.parent.relative_to(site) for path in site.rglob('index.html')}
    assert {path.parent if path.name in ('index', 'README') else path for path in pages} | outside == built


def test_links_out_of_a_page_lead_to_pages_or_to_the_repository(site):
    recipes = (site / 'recipes' / 'index.html').read_text()
    assert 'href="../backends/#cuda-graphs"' in recipes and 'href="../contributing/#add-a-component"' in recipes
    assert re.search(r'href="https://[^"]*/blob/main/hub/results\.csv"', recipes)
    assert (site / 'hub' / 'tradeoff' / 'tradeoff.png').is_file()
    assert re.search(r'<a href="\.\./energy/">[^<]*energy</a>', (site / 'tradeoff' / 'index.html').read_text())


class Assets(HTMLParser):
    """Addresses that a browser fetches by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.found.append(values.get('src') or '')
        if tag == 'link' and values.get('rel') not in ('canonical', 'next', 'prev'):
            self.found.append(values['href'])
        assert values.get('data-md-component') != 'source', "Material's script would ask GitHub for stars"


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob('*.html'):
        assets = Assets()
        assets.feed(page.read_text())
        assert any(address.endswith('.js') for address in assets.found)
        assert [address for address in assets.found if re.match(r'(\w+:)?//', address)] == [], page
    for sheet in site.rglob('*.css'):
        assert re.findall(r'(?:url\(|@import)\s*["\']?(?:https?:)?//[^)]*', sheet.read_text()) == [], sheet


def names_of(module: ModuleType) -> set[str]:
    """`__all__`, and what the file imports `as` itself to say that it is public."""
    tree = ast.parse(Path(module.__file__).read_text())
    imports = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    stars = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.names[0].name == '*']
    own = {alias.asname for alias in imports if alias.asname == alias.name}
    if module.__name__ == 'timm_snn.testing':  # which is made of its two files
        own.update(*(importlib.import_module(f'{module.__name__}.{star}').__all__ for star in stars))
    return own.union(getattr(module, '__all__', []))


SHOWN = {
    name for page in (ROOT / 'docs' / 'api').glob('*.md') for name in re.findall('^::: (.*)', page.read_text(), re.M)
}


@pytest.fixture(scope='module')
def things() -> list[object]:
    """What the pages show: a function has its place there by one of its names."""
    parts = (name.rpartition('.') for name in SHOWN)
    return [getattr(importlib.import_module(module), name) for module, _, name in parts]


@pytest.mark.parametrize('name', PUBLIC)
def test_every_public_name_has_its_place_in_the_api(name, things):
    module = importlib.import_module(name)
    public = {public: getattr(module, public) for public in names_of(module) - {'__version__'}}
    assert public
    missing = [
        public
        for public, thing in public.items()
        if f'{name}.{public}' not in SHOWN and not (callable(thing) and thing in things)
        if not isinstance(thing, ModuleType)
    ]
    assert missing == [], 'add them to a page of docs/api/'


def test_signatures_have_types_and_links_to_their_classes(site):
    page = (site / 'api' / 'ops' / 'index.html').read_text()
    signature = page.split('id="timm_snn.ops.lif"')[1].split('</pre>')[0]
    assert 'Surrogate</a>' in signature
    text = html.unescape(re.sub('<[^>]+>', '', signature))
    assert 'x: Tensor' in text and 'tau: float | Tensor = 2.0' in text.replace('\n', '')


def test_arguments_are_named_with_what_the_signature_cannot_say(site):
    page = (site / 'api' / 'data' / 'index.html').read_text()
    arguments = page.split('id="timm_snn.data.read_events"')[1].split('<dl')[1].split('</dl>')[0]
    assert re.findall(r'<code>(\w+)</code></dt>', arguments)[:2] == ['kind', 'order']


BROWSER = shutil.which('chromium') or shutil.which('google-chrome')


@pytest.mark.skipif(BROWSER is None, reason='needs a browser: chromium or google-chrome')
def test_a_long_table_is_sorted_and_filtered_in_the_browser(tmp_path):
    """A click on the head sorts by numbers, empty cells last; a choice and a word leave the rows that have both."""
    rows = [('a', '1,000'), ('b', '20'), ('a', ''), ('b', '3')] * 8
    cells = ''.join(f'<tr><td>row {i}</td><td>{kind}</td><td>{n}</td></tr>' for i, (kind, n) in enumerate(rows))
    script = (ROOT / 'docs' / 'site' / 'tables.js').read_text()
    act = """
        document.querySelectorAll('.sort')[2].click();
        const [choice] = document.querySelectorAll('select');
        choice.value = 'a';
        document.querySelector('input').value = 'row';
        choice.dispatchEvent(new Event('input', { bubbles: true }));
        const left = [...document.querySelectorAll('tbody tr')].filter((row) => !row.hidden);
        document.title = left.map((row) => row.cells[2].textContent).join(' ') + '; '
            + document.querySelector('output').textContent;
    """
    head = '<thead><tr><th>name</th><th>kind</th><th>number</th></tr></thead>'
    page = tmp_path / 'page.html'
    page.write_text(
        f'<article><table>{head}<tbody>{cells}</tbody></table></article><script>{script}</script><script>{act}</script>'
    )
    flags = ['--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}', '--dump-dom']
    done = subprocess.run([BROWSER, *flags, page.as_uri()], capture_output=True, text=True, timeout=60)
    title = re.search('<title>(.*)</title>', done.stdout)[1]
    assert re.sub(' +', ' ', title) == ' '.join(['1,000'] * 8) + ' ; 16 of 32'
