"""Pages of the site that lie outside of docs/, and links to what is no page."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

# By its name on the site, a file of the repository.
PAGES = {
    'changelog.md': 'CHANGELOG.md',
    'contributing.md': 'CONTRIBUTING.md',
    'publishing.md': 'hub/README.md',
    'recipes.md': 'recipes/README.md',
}
PICTURES = {'.gif', '.png', '.svg'}
WITHOUT_SIDEBARS = {'index.md', 'models.md', 'results.md'}  # the latter for the sake of their tables
LINK = re.compile(r'\[(?P<text>[^]]*)\]\((?P<target>[^)#\s:]+)(?P<heading>#[\w-]+)?\)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, path in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as on GitHub, from file to file, become links of the site.

    A link whose text is the name of a page gets the page's title. A file that is no page is linked in the repository,
    if REPO_URL says where that is; a picture is taken into the site. Where there is no such file the link stays, and
    mkdocs warns of it.
    """
    if page.file.src_uri in WITHOUT_SIDEBARS:
        page.meta['hide'] = ['navigation', 'toc']
    source = Path(page.file.abs_src_path or ROOT / 'docs' / page.file.src_uri)  # a notebook's page has no file
    pages = {path: name for name, path in PAGES.items()}

    def on_the_site(match: re.Match[str]) -> str:
        text, target = match['text'], (source.parent / match['target']).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            return match[0]
        path = target.relative_to(ROOT).as_posix()
        name = pages.get(path, path.removeprefix('docs/') if path.startswith('docs/') else None)
        if name is None and target.suffix in PICTURES:
            name = path
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(target)))
        if name is None or target.is_dir():
            if not config.repo_url:
                return text
            address = f'{config.repo_url}/{"tree" if target.is_dir() else "blob"}/main/{path}'
        else:
            address = posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')
            if target.suffix == '.md' and text.endswith('.md'):
                text = target.read_text(encoding='utf-8').partition('\n')[0].removeprefix('# ').partition(':')[0]
        return f'[{text}]({address}{match["heading"] or ""})'

    return LINK.sub(on_the_site, markdown)
