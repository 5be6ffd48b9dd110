"""The published networks, one file each, under their published entry names."""

from .deep3d import Deep3DRecon
from .ir_se50 import IRSE
from .iresnet import IResNet, iresnet_of
from .sixdrepnet import SixDRepNet, euler_angles, fold_training_form, is_training_form, rotation_matrix

__all__ = [
    "IRSE",
    "Deep3DRecon",
    "IResNet",
    "SixDRepNet",
    "euler_angles",
    "fold_training_form",
    "iresnet_of",
    "is_training_form",
    "rotation_matrix",
]
