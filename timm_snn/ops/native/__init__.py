"""C++ for a CPU, and how it is built."""

from ...progress import waiting
from . import build

build.set_display(waiting)
