"""Write a trained model for another runtime: ONNX, torch.export, AOTInductor, ExecuTorch or NIR.

    timm-snn export local-dir:output/digits/model
    timm-snn export msvit_4_96.fashion_mnist --format torch_export --output fashion.pt2
    timm-snn export msvit_4_96 --checkpoint output/digits/checkpoints/epoch_0018

The file takes batches of any size, has what a program needs to know of the classes and of the input, and is compared
with the model before it is written. docs/export.md says what each format takes.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import timm_snn

from ..export import FORMATS
from ..progress import waiting
from .console import give
from .errors import one_line_errors, script
from .labels import descriptions_of, open_labels
from .models import input_config, open_model
from .options import ArgumentParser, Flag, image_options, model_options, model_parser

__all__ = ['main']


def make_parser() -> ArgumentParser:
    parser = model_parser('timm-snn export', __doc__, batches=False)
    add = parser.add_argument_group('export').add_argument
    add('--format', choices=FORMATS, help="default: what --output's suffix says, or onnx")
    add('--output', type=Path, metavar='FILE', help='default: NAME.onnx, or with the suffix of --format')
    add('--labels', type=Path, help='names of the classes, one in each line; default: those saved with the model')
    add('--check', action=Flag, default=True, help='run the file and compare it with the model')
    return parser


@script(kept='there is no new file')
def main(argv: Sequence[str] | None = None) -> None:
    if argv and not argv[0].startswith('-'):
        argv = ['--model', *argv]
    args = make_parser().parse_args(argv)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    model = open_model(args.model, **model_options(args))
    if given := image_options(args):
        model.pretrained_cfg.update(input_config(model, **given))
    labels = open_labels(model, args.labels) if model.num_classes else None
    names = descriptions_of(labels, model.num_classes) if labels else None
    name = model.pretrained_cfg.get('architecture') or 'model'
    file = args.output or Path(f'{name}{FORMATS[args.format or "onnx"]}')
    with one_line_errors(f'export {args.model!r}'), waiting(f'exporting to {file}'):
        exported = timm_snn.export(model, file, format=args.format, labels=names, check=args.check)
    give(asdict(exported), str(exported))


if __name__ == '__main__':
    main()
