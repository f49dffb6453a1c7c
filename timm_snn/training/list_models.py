"""List the models of this package: parameters, time steps, input, and whether their weights can be loaded.

    timm-snn models
    timm-snn models 'msvit_*' --pretrained
    timm-snn models --json

Weights are 'shipped' with the package, 'published' on the Hub, or 'not yet trained'.
"""

from collections.abc import Sequence
from typing import Any

import timm

import timm_snn  # noqa: F401  # whose import registers the models

from ..models.pretrained import is_ours, weights_status
from ..progress import track
from .console import give
from .errors import UserError, script
from .options import ArgumentParser

COLUMNS = ('model', 'parameters', 'T', 'input', 'classes', 'weights')


def describe(name: str) -> dict[str, str]:
    """The row of NAME.TAG."""
    model: Any = timm.create_model(name, device='meta')
    return {
        'model': name,
        'parameters': f'{sum(parameter.numel() for parameter in model.parameters()):,}',
        'T': str(getattr(model, 'num_steps', 1)),
        'input': ' x '.join(map(str, model.pretrained_cfg['input_size'])),
        'classes': str(model.num_classes),
        'weights': weights_status(name),
    }


@script
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser('timm-snn models', __doc__)
    parser.add_argument('filter', nargs='?', default='', help="with the wildcards of timm.list_models, as 'msvit_*'")
    parser.add_argument('--pretrained', action='store_true', help='those alone whose weights can be loaded')
    args = parser.parse_args(argv)
    names = [name for name in timm.list_models(args.filter, include_tags=True) if is_ours(name)]
    if args.pretrained:
        names = [name for name in names if weights_status(name) != 'not yet trained']
    if not names:
        raise UserError(f'no model of ours is like {args.filter!r}: timm-snn models lists all')
    rows = [describe(name) for name in track(names, 'look at', unit='models')]
    table = [COLUMNS, *(tuple(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    give(rows, *('  '.join(map(str.ljust, cells, widths)).rstrip() for cells in table))


if __name__ == '__main__':
    main()
