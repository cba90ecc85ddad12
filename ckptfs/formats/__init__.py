"""SHAPES: where the tensors lie in a file. Pure parsing, bounded against hostile input; nothing is ever unpickled."""

from ckptfs.formats.cuts import TensorCuts
from ckptfs.formats.layout import Tensor
from ckptfs.formats.recognise import parse

__all__ = ["Tensor", "TensorCuts", "parse"]
