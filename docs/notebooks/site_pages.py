"""The notebooks as pages of the documentation site: a hook of mkdocs.

Text stays what it is, code becomes a block, and below it stands what the cell has shown. GitHub shows the notebooks
themselves; the site has them to download.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for file in [file for file in files if file.src_uri.endswith('.ipynb')]:
        notebook = json.loads(Path(file.abs_src_path or '').read_text(encoding='utf-8'))
        name = file.src_uri.removesuffix('.ipynb')
        page, pictures = as_page(notebook, Path(name).name)
        files.append(File.generated(config, f'{name}.md', content=page))
        for number, picture in enumerate(pictures):
            files.append(File.generated(config, f'{name}_{number}.png', content=picture))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks lead to their pages."""
    return re.sub(r'(\]\([\w./-]+)\.ipynb\)', r'\1.md)', markdown)


def as_page(notebook: Mapping[str, Any], name: str) -> tuple[str, list[bytes]]:
    """Markdown, and the PNG files that it shows as NAME_0.png, NAME_1.png and so on."""
    pictures: list[bytes] = []
    parts: list[str] = []
    heading = name
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(source)
            heading = [heading, *re.findall(r'(?m)^#+ (.*)', source)][-1]
            continue
        parts.append(f'```python\n{source}\n```')
        for kind, text in shown_by(cell):
            if kind == 'image/png':
                parts.append(f'![{heading}]({name}_{len(pictures)}.png)')
                pictures.append(base64.b64decode(text))
            else:
                parts.append(text if kind == 'text/markdown' else f'```text\n{text.rstrip()}\n```')
    # in HTML, as a link in Markdown would lead to this page
    parts.append(f'<a href="../{name}.ipynb" download>Download this notebook</a>')
    return '\n\n'.join(parts) + '\n', pictures


def shown_by(cell: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The richest form of each output of a cell: its MIME type, and its text or base64."""
    for output in cell['outputs']:
        data = output.get('data') or {'text/plain': output['text']}
        kind = next(kind for kind in ('image/png', 'text/markdown', 'text/plain') if kind in data)
        yield kind, ''.join(data[kind])
