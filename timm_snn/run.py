"""Run a program that is built on timm with the models of this package registered.

    python -m timm_snn.run train.py --model msvit_4_96 ...        a script, as `python train.py ...`
    python -m timm_snn.run -m package.module --model msvit_4_96   a module, as `python -m package.module ...`
    python -m timm_snn.run --import my_family train.py ...        with families or neurons of your own, too
    accelerate launch -m timm_snn.run train.py ...                in several processes; torchrun -m likewise

The program sees its own arguments, its own folder first on the path, and `__name__ == '__main__'`; what it raises keeps
its traceback.
"""

import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

__all__ = ['main']


def main(argv: Sequence[str] | None = None) -> None:
    import_module('timm_snn')  # which registers the models
    arguments = list(sys.argv[1:] if argv is None else argv)
    while arguments[:1] == ['--import'] and len(arguments) > 1:
        import_module('timm_snn.training.imports').import_own(arguments[1])
        del arguments[:2]
    if not arguments or (arguments[0] in ('-h', '--help', '--import', '-m') and len(arguments) < 2):
        print(__doc__)
        raise SystemExit(0 if arguments[:1] in (['-h'], ['--help']) else 2)
    if arguments[0] == '-m':
        sys.argv = arguments[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(arguments[1], run_name='__main__', alter_sys=True)
    else:
        script = Path(arguments[0])
        if not script.is_file():
            raise SystemExit(f'error: there is no script {script}: name a file, or a module after -m')
        sys.argv = arguments
        sys.path.insert(0, str(script.resolve().parent))
        runpy.run_path(str(script), run_name='__main__')


if __name__ == '__main__':
    main()
