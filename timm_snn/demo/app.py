"""A page in the browser on which models show what they do, on this computer alone.

    timm-snn demo
    timm-snn demo --model local-dir:output/digits/model hf-hub:USER/NAME --port 7861

Draw, upload or pick a picture, or a recording of an event camera, and see the evidence of the classes, the spikes of
every stage step by step, the estimated energy, and what an early exit would change. The page asks nobody for anything.
Only this computer can open it, unless --host 0.0.0.0 lets others in. Ctrl-C ends it.
"""

import importlib.util
import time
from collections.abc import Sequence

import torch

from ..training.errors import UserError, one_line_errors, script
from ..training.options import ArgumentParser, positive_int
from .inputs import shipped

__all__ = ['main']


def make_parser() -> ArgumentParser:
    parser = ArgumentParser('timm-snn demo', __doc__)
    add = parser.add_argument
    add(
        '--model', nargs='+', default=[], metavar='MODEL',
        help="'local-dir:FOLDER', 'hf-hub:USER/NAME', or a name with published weights; shown first, beside those that "
        'came with the package',
    )  # fmt: skip
    add('--port', type=positive_int, help='default: the first free one from 7860 on')
    add('--host', default='127.0.0.1', help='address to listen on; 0.0.0.0 lets other computers in')
    add('--num-threads', type=positive_int, help='default: all cores')
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if importlib.util.find_spec('gradio') is None:
        raise UserError("the page needs gradio: pip install 'timm-snn[demo]'")
    from .page import LAUNCH, make_page

    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    page = make_page([*args.model, *shipped()])
    with one_line_errors(f'open the page at {args.host}', 'pass another --port or --host'):
        _, address, _ = page.launch(
            server_name=args.host, server_port=args.port, prevent_thread_lock=True, quiet=True, **LAUNCH
        )
    print(f'the page is at {address} (Ctrl-C ends it)', flush=True)
    try:
        while page.is_running:
            time.sleep(0.2)
    except KeyboardInterrupt:
        print('closed')
    finally:
        page.close(verbose=False)


if __name__ == '__main__':
    main()
