"""Model families; importing one registers its models with timm."""

from .msvit import *  # noqa: F403  register_model adds the entrypoints to __all__
from .msvit import MSViT as MSViT
from .pretrained import save_for_hf as save_for_hf
