"""Write the table of pretrained weights into docs/hub.md: every tag of the package, and where its weights are.

python hub/table.py
"""

import re
from pathlib import Path
from typing import Any

import timm

from timm_snn.models.pretrained import is_ours, weights_status

PAGE = Path(__file__).parents[1] / 'docs' / 'hub.md'


def render() -> str:
    rows = ['| model | weights | address | input | classes | licence |', '|---|---|---|---|---|---|']
    for name in timm.list_models(include_tags=True):
        if is_ours(name):
            cfg: Any = timm.get_pretrained_cfg(name)
            size = ' x '.join(map(str, cfg.input_size))
            address = f'`{cfg.hf_hub_id}`'
            rows.append(
                f'| `{name}` | {weights_status(name)} | {address} | {size} | {cfg.num_classes} | {cfg.license} |'
            )
    return '\n'.join(rows)


def main() -> None:
    page = PAGE.read_text(encoding='utf-8')
    before, after = re.split(r'(?<=<!-- hub/table.py -->\n\n).*(?=\n\n<!-- end -->)', page, flags=re.DOTALL)
    PAGE.write_text(before + render() + after, encoding='utf-8')


if __name__ == '__main__':
    main()
