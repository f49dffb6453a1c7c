"""Segmentation and detection with spiking backbones.

from timm_snn import dense

model = dense.create_segmenter('msvit_4_96', num_classes=11)     # logits for every pixel
"""

from .detector import create_detector
from .folders import load, save
from .norms import freeze_norms
from .pyramid import anchor_generator, fpn_backbone
from .segmenter import create_segmenter

__all__ = ['anchor_generator', 'create_detector', 'create_segmenter', 'fpn_backbone', 'freeze_norms', 'load', 'save']
