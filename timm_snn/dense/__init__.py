"""Segmentation and detection with spiking backbones.

from timm_snn import dense

model = dense.create_segmenter('msvit_4_96', num_classes=11)     # logits for every pixel
"""

from .folders import load, save
from .segmenter import create_segmenter

__all__ = ['create_segmenter', 'load', 'save']
