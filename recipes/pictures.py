"""Pictures of a trained model at work on real data, as PNG: spikes, attention maps, membranes, accuracy against T.

    python recipes/pictures.py --model local-dir:output/digits/model --dataset digits
    python recipes/pictures.py --model local-dir:output/digits/model --sample 7 --steps 1 2 4 8 --layers stem.units.0

Leaves spike_raster.png, attention_maps.png, membrane_traces.png and accuracy_and_energy.png in --output. The first
three show one sample of the data, the last one --num-samples of them. A model without MSSA has no attention maps,
and frames of events, whose number is fixed, have no accuracy against T; recipes/validate.py has it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from timm_snn.files import write_whole
from timm_snn.layers import MultiScaleSpikingAttention
from timm_snn.profiling import pictures
from timm_snn.progress import track
from timm_snn.training.console import give
from timm_snn.training.data import open_samples
from timm_snn.training.errors import one_line_errors, script
from timm_snn.training.labels import labelled_batches
from timm_snn.training.models import open_model
from timm_snn.training.options import (
    ArgumentParser,
    data_source,
    evaluation_parser,
    image_options,
    model_options,
    positive_int,
)


def make_parser() -> ArgumentParser:
    parser = evaluation_parser('recipes/pictures.py', __doc__, num_samples=500)
    add = parser.add_argument_group('pictures').add_argument
    add('--sample', type=int, default=0, help='which sample to look at')
    add('--layers', nargs='+', help='names for the spike raster, as in a report; default: all')
    add('--trace', default='stem.units.0', help='the unit whose membranes are traced')
    add('--steps', type=positive_int, nargs='+', default=[1, 2, 4, 8], help='T to compare')
    add('--dpi', type=positive_int, default=110)
    add('--output', type=Path, default=Path('output/pictures'))
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    model = open_model(args.model, **model_options(args))
    source = data_source(args)
    samples = open_samples(source, args.split, model, args.num_samples, **image_options(args))
    if not 0 <= args.sample < len(samples):
        parser.error(f'--sample {args.sample} is not one of the {len(samples)} samples')
    image = samples[args.sample][0]
    loader = labelled_batches(
        model, samples, args.batch_size, args.workers, is_folder=source.is_folder, file=args.labels
    )

    makers = {
        'spike_raster': lambda: pictures.spike_raster(model, image, args.layers),
        'attention_maps': lambda: pictures.attention_maps(model, image),
        'membrane_traces': lambda: pictures.membrane_traces(model, image, args.trace),
        'accuracy_and_energy': lambda: pictures.accuracy_and_energy(
            pictures.profile_steps(model, loader, args.steps, data_name=samples.description)
        ),
    }
    if source.is_events:  # whose frames are as many as they are
        del makers['accuracy_and_energy']
    if not any(isinstance(module, MultiScaleSpikingAttention) for module in model.modules()):
        del makers['attention_maps']
    args.output.mkdir(parents=True, exist_ok=True)
    for name, make in track(makers.items(), 'draw', unit='pictures'):
        with one_line_errors(f'make {name}.png'), write_whole(args.output / f'{name}.png') as unfinished:
            make().savefig(unfinished, format='png', dpi=args.dpi)
    files = [args.output / f'{name}.png' for name in makers]
    give(
        {'data': samples.description, 'files': files},
        f'{len(makers)} pictures of {samples.description} in {args.output}',
    )


if __name__ == '__main__':
    main()
