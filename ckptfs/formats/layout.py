"""What every parser yields: one tensor's place in a file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: `size` bytes from `offset` of the file on, elements of `element_width` bytes."""

    name: str
    offset: int
    size: int
    element_width: int
    shape: tuple[int, ...]
    dtype: str
