"""Packages of AOTInductor: compiled for the processor of this machine, for Python and C++ with libtorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .archive import add_metadata, read_metadata
from .capture import capture, flat

__all__ = ['INSTALL', 'METADATA_BESIDE', 'NEEDS', 'load', 'read_metadata', 'write']

NEEDS, INSTALL = (), ''
METADATA_BESIDE = False


def write(model: nn.Module, example: Tensor, names: list[str], metadata: dict[str, Any], file: Path) -> None:
    """Compile a prepared model. Raises: ValueError where there is no compiler."""
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        torch._inductor.aoti_compile_and_package(capture(model, example), package_path=str(file))
    except (CppCompileError, InvalidCxxCompiler) as error:
        raise ValueError(
            f'AOTInductor compiles C++, and that failed here: install a C++ compiler, as g++, or name one in CXX; '
            f'{str(error).strip().partition(chr(10))[0]}'
        ) from error
    add_metadata(file, metadata)


def load(file: Path) -> Callable[[Tensor], list[Tensor]]:
    run = torch._inductor.aoti_load_package(str(file))
    return lambda x: flat(run(x))
