"""SHAPES: where the tensors lie in a file. Pure parsing, bounded against hostile input; nothing is ever unpickled."""

from ckptfs.formats.layout import Tensor
from ckptfs.formats.safetensors import parse_safetensors

__all__ = ["Tensor", "parse_safetensors"]
