"""`python -m timm_snn.export` is `timm-snn export`."""

import sys

from ..cli import main

main(['export', *sys.argv[1:]])
