"""Pictures of a trained model at work on real data, as PNG: spikes, attention maps, membranes, accuracy against T.

    python recipes/pictures.py --model local-dir:output/digits/model --dataset digits
    python recipes/pictures.py --model local-dir:output/digits/model --sample 7 --steps 1 2 4 8 --layers stem.units.0

Leaves spike_raster.png, attention_maps.png, membrane_traces.png and accuracy_and_energy.png in --output. The first
three show one sample of the data, the last one --num-samples of them. A model without MSSA has no attention maps.
"""

from pathlib import Path

from evaluation import make_parser, open_model, open_samples, parse_args
from labels import labelled_batches
from options import one_line_errors, positive_int

from timm_snn.layers import MultiScaleSpikingAttention
from timm_snn.profiling import pictures


def main() -> None:
    parser = make_parser(__doc__ or '', num_samples=500)
    add = parser.add_argument_group('pictures').add_argument
    add('--sample', type=int, default=0, help='which sample to look at')
    add('--layers', nargs='+', help='names for the spike raster, as in a report; default: all')
    add('--trace', default='stem.units.0', help='the unit whose membranes are traced')
    add('--steps', type=positive_int, nargs='+', default=[1, 2, 4, 8], help='T to compare')
    add('--dpi', type=positive_int, default=110)
    add('--output', type=Path, default=Path('output/pictures'))
    args = parse_args(parser)

    model = open_model(args, args.model, **args.model_kwargs)
    samples = open_samples(args, model)
    if not 0 <= args.sample < len(samples):
        parser.error(f'--sample {args.sample} is not one of the {len(samples)} samples')
    image = samples[args.sample][0]
    loader = labelled_batches(args, model, samples)

    makers = {
        'spike_raster': lambda: pictures.spike_raster(model, image, args.layers),
        'attention_maps': lambda: pictures.attention_maps(model, image),
        'membrane_traces': lambda: pictures.membrane_traces(model, image, args.trace),
        'accuracy_and_energy': lambda: pictures.accuracy_and_energy(
            pictures.profile_steps(model, loader, args.steps, data_name=samples.description)
        ),
    }
    if not any(isinstance(module, MultiScaleSpikingAttention) for module in model.modules()):
        del makers['attention_maps']
    args.output.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        with one_line_errors(f'make {name}.png'):
            make().savefig(args.output / f'{name}.png', dpi=args.dpi)
    print(f'{len(makers)} pictures of {samples.description} in {args.output}')


if __name__ == '__main__':
    main()
