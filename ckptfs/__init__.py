"""ckptfs: a checkpoint snapshot filesystem."""

__version__ = "0.1.0"
