"""The published networks, one file each, under their published entry names."""

from .bisenet import BiSeNet
from .deep3d import Deep3DRecon
from .ir_se50 import IRSE
from .iresnet import IResNet, iresnet_of
from .mapping import MappingNetwork, mapping_of
from .msid import MSID, msid_of
from .postfuse import PostFusion
from .sixdrepnet import SixDRepNet, euler_angles, fold_training_form, is_training_form, rotation_matrix

__all__ = [
    "IRSE",
    "MSID",
    "BiSeNet",
    "Deep3DRecon",
    "IResNet",
    "MappingNetwork",
    "PostFusion",
    "SixDRepNet",
    "euler_angles",
    "fold_training_form",
    "iresnet_of",
    "is_training_form",
    "mapping_of",
    "msid_of",
    "rotation_matrix",
]
