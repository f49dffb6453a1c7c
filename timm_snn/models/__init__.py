"""Model families; importing one registers its models with timm.

Beside them are the names that a family in a package of one's own is written with: docs/plugins.md has one.
"""

from .base import KEEP as KEEP
from .base import POOL as POOL
from .base import SpikingStage as SpikingStage
from .base import SpikingTransformer as SpikingTransformer
from .base import attention_layer as attention_layer
from .base import per_stage as per_stage
from .builder import build_spiking_model as build_spiking_model
from .cfgs import pretrained_cfgs as pretrained_cfgs
from .conversion import ConvertedModel as ConvertedModel
from .conversion import convert as convert
from .conversion import quantize_activations as quantize_activations
from .espikeformer import *  # noqa: F403
from .espikeformer import ESpikeformer as ESpikeformer
from .expand import expand_levels as expand_levels
from .features import set_num_steps as set_num_steps
from .fuse import fuse as fuse
from .keys import KeyRules as KeyRules
from .keys import match_pointwise_shapes as match_pointwise_shapes
from .keys import rename_keys as rename_keys
from .max_resnet import *  # noqa: F403
from .max_resnet import MaxResNet as MaxResNet
from .maxformer import *  # noqa: F403
from .maxformer import MaxFormer as MaxFormer
from .metaspikformer import *  # noqa: F403
from .metaspikformer import MetaSpikformer as MetaSpikformer
from .ms_qkformer import *  # noqa: F403
from .ms_qkformer import MSQKFormer as MSQKFormer
from .ms_resnet import *  # noqa: F403
from .ms_resnet import MSResNet as MSResNet
from .mst import *  # noqa: F403
from .mst import MaskedSpikingTransformer as MaskedSpikingTransformer
from .mst import QuantizedSwin as QuantizedSwin
from .msvit import *  # noqa: F403  register_model adds the entrypoints to __all__
from .msvit import MSViT as MSViT
from .neurons import neuron_layer as neuron_layer
from .nir import to_nir as to_nir
from .nir import why_not_nir as why_not_nir
from .nir import write_nir as write_nir
from .pretrained import save_for_hf as save_for_hf
from .qkformer import *  # noqa: F403
from .qkformer import QKFormer as QKFormer
from .quantize import quantize as quantize
from .quantized import QuantizedModel as QuantizedModel
from .quantized import load_quantized as load_quantized
from .sdt import *  # noqa: F403
from .sdt import SpikeDrivenTransformer as SpikeDrivenTransformer
from .sew_resnet import *  # noqa: F403
from .sew_resnet import SEWResNet as SEWResNet
from .spikformer import *  # noqa: F403
from .spikformer import Spikformer as Spikformer
from .spikformer_v2 import *  # noqa: F403
from .spikformer_v2 import SpikformerV2 as SpikformerV2
from .spiking_resnet import *  # noqa: F403
from .spiking_resnet import SpikingResNet as SpikingResNet
from .spikingformer import *  # noqa: F403
from .spikingformer import Spikingformer as Spikingformer
from .spikingresformer import *  # noqa: F403
from .spikingresformer import SpikingResformer as SpikingResformer
from .streaming import stream as stream
from .untrusted import check_state_dict as check_state_dict
