"""Convert a checkpoint of a model's authors, or of other training code, to a folder in the Hub's format.

    python hub/convert.py authors.pth msvit_4_384.cifar10 --output output/converted
    python hub/convert.py authors.pth msvit_10_384.in1k --output output/converted --labels names.txt --url https://...
    python hub/push.py output/converted USER/NAME

Any registered model: its own key map (`checkpoint_filter_fn` of its file) makes the authors' keys ours. Every tensor of
the model must be in the file, with its shape, and nothing else. Pickles are opened with weights_only=True, which runs
no code from them; NumPy values beside the weights are passed over. The weights are found in whichever part of the file
they are ('state_dict', 'model', 'net', ...), and prefixes that all keys have (DDP's, torch.compile's) are taken off.
"""

import hashlib
import pickle
import zipfile
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from card import make_card
from model_folder import (
    Source,
    add_folder_options,
    apply_options,
    folder_options,
    name_training,
    read_report,
    write_folder,
)
from timm.utils import ParseKwargs
from torch import Tensor

from timm_snn.files import check_regular_file, printable
from timm_snn.models.builder import WeightsMismatch, find_mismatches
from timm_snn.models.untrusted import ADVICE
from timm_snn.models.weights import ignoring_numpy, unpack
from timm_snn.progress import waiting
from timm_snn.training.console import give
from timm_snn.training.errors import UserError, one_line_errors, script
from timm_snn.training.models import key_map
from timm_snn.training.options import ArgumentParser

SHOWN = 20  # keys of each kind in an error


def read_weights(file: Path, use_ema: bool, key: str | None = None) -> dict[str, Tensor]:
    """Raises: OSError, ValueError and others if the file cannot be read, or holds no state dict, or several."""
    if not file.exists():
        raise FileNotFoundError('there is no such file')
    check_regular_file(file)
    if file.suffix == '.safetensors':
        return unpack(safetensors.torch.load_file(file))
    try:
        with ignoring_numpy():
            checkpoint = torch.load(file, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        needs = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file)) if zipfile.is_zipfile(file) else []
        asks = f', but asks for {printable(", ".join(needs))}; if you trust its authors, {ADVICE}' if needs else ''
        raise ValueError(f'it is no file of weights alone, and nothing of it was run{asks}') from error
    return unpack(checkpoint, use_ema=use_ema, key=key)


def fit(weights: dict[str, Tensor], model: Any) -> dict[str, list[str]]:
    """Load the weights under the model's own keys. Returns what does not fit, by kind, and then loads nothing."""
    try:
        weights = key_map(model)(weights, model)
    except WeightsMismatch as error:
        return dict(error.mismatches)
    if not (found := find_mismatches(weights, model, strict=True)):
        model.load_state_dict(weights)
    return found


def summarize(found: dict[str, list[str]]) -> str:
    """'2 keys missing (a, b), 1 key unexpected (c)'."""
    return ', '.join(
        f'{len(keys)} {"key" if len(keys) == 1 else "keys"} {kind} '
        f'({"; ".join(printable(key, 100) for key in keys[:SHOWN])}'
        + (f'; and {len(keys) - SHOWN} more)' if len(keys) > SHOWN else ')')
        for kind, keys in found.items()
    )


@script(kept='there is no new folder')
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser('hub/convert.py', __doc__)
    add = parser.add_argument
    add('file', type=Path, help='.pth, .pt, .safetensors, ...')
    add('model', help='registered name with the tag of the training, as msvit_4_384.cifar10')
    add('--output', type=Path, required=True, help='folder to write')
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='name=value ..., e.g. attn_v_threshold=0.5')
    add('--num-classes', type=int, help="default: the tag's")
    add('--in-chans', type=int, help="default: the tag's")
    add('--ema', action=BooleanOptionalAction, default=True, help='take averaged weights where the file has both')
    add('--key', help='of the weights where the file has several, as net or checkpoint.model; default: the only ones')
    add('--url', help='where the file came from, for the card')
    add_folder_options(parser)
    parser.set_defaults(license='unknown')
    args = parser.parse_args(argv)

    with one_line_errors(f'create model {args.model!r}'):
        sizes = dict(num_classes=args.num_classes, in_chans=args.in_chans)
        model = timm.create_model(args.model, **sizes, **args.model_kwargs).eval()
        if key_map(model) is None:
            raise ValueError('it is not of timm_snn')
        name_training(model, args.model)
    advice = 'expected .safetensors or .pth'
    with one_line_errors(f'read weights from {args.file}', advice), waiting(f'reading {args.file}'):
        weights = read_weights(args.file, args.ema, args.key)
        digest = hashlib.sha256(args.file.read_bytes()).hexdigest()
        found = fit(weights, model)
    if found:
        raise UserError(
            f'{args.file} does not fit {args.model}: {summarize(found)}; pass the model, --num-classes, '
            '--in-chans and --model-kwargs that it was trained with'
        )
    origin = {'file': args.file.name, 'sha256': digest} | ({'url': args.url} if args.url else {})
    source = Source(model, origin=origin)
    options = folder_options(args)
    apply_options(source, options)
    card = make_card(source, None, read_report(options.energy, model), options.dtype)
    with waiting(f'writing {args.output}'):
        write_folder(source, args.output, card, [], options)
    give(
        {'output': args.output, 'tensors': len(weights), 'converted_from': origin},
        f'written: {args.output}, {len(weights)} tensors; not evaluated',
    )


if __name__ == '__main__':
    main()
