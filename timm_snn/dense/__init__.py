"""Segmentation and detection: heads for every place of an image, over the feature levels of any model of timm.

    from timm_snn import dense

    dense.create_segmenter('msvit_4_96', num_classes=11)    # labels of pixels
    dense.create_detector('msvit_4_96', num_classes=3)      # boxes

It is imported by itself.
"""

from .detector import create_detector
from .folders import load, save
from .norms import freeze_norms
from .pyramid import anchor_generator, fpn_backbone
from .segmenter import create_segmenter

__all__ = ['anchor_generator', 'create_detector', 'create_segmenter', 'fpn_backbone', 'freeze_norms', 'load', 'save']
