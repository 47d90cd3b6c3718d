"""The reference training: the stages in ``_loop``, what each is made of in the files beside it."""

from mmmlib.reference.train._loop import train
from mmmlib.reference.train._objective import LOSSES, Labels, Step

__all__ = ["LOSSES", "Labels", "Step", "train"]
