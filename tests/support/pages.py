"""What the pages of the documentation show: their blocks of Python, and their commands."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / 'README.md', *(path for folder in ('docs', 'hub', 'recipes') for path in ROOT.glob(f'{folder}/**/*.md'))]
)

NOT_RUN = re.compile(r'<!-- not run: (.+) -->\n+$')
FENCED = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r'(?<=\n\n)(?:^    .*\n)+', re.MULTILINE)
COMMAND = re.compile(r'(?:^|\s)(timm-snn (?=\w)|(?:recipes|hub)/\w+\.py )(.*)')


@dataclass(frozen=True)
class Block:
    """`line` is that of its first line of code, from 1; `not_run` the reason that a comment above it gives."""

    page: Path
    line: int
    code: str
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of Python."""
    text = page.read_text(encoding='utf-8')
    found = []
    for match in FENCED.finditer(text):
        if match[1] == 'python':
            marked = NOT_RUN.search(text[: match.start()])
            line = text.count('\n', 0, match.start(2)) + 1
            found.append(Block(page, line, match[2], marked[1] if marked else None))
    return found


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each script of ours, or 'timm-snn', with its arguments, from blocks of shell and indented ones."""
    text = page.read_text(encoding='utf-8')
    shell = [match[2] for match in FENCED.finditer(text) if match[1] in ('bash', 'sh')]
    for block in [*shell, *INDENTED.findall(FENCED.sub('', text))]:
        for line in re.sub(r'\\\n\s*', ' ', block).splitlines():
            found = COMMAND.search(re.split(r'  #| [|>] ', line)[0] + ' ')
            if found:
                yield found[1].strip(), [word for word in shlex.split(found[2]) if word != '...']
