"""Random changes to batches of images: every image its own, all from one seeded generator.

Each function takes floating-point images in [0, 1] and a CPU generator and returns new images on
the same device. The draws do not depend on the device, and no function waits for a GPU.
"""

from mmmlib.reference.augment._color import (
    brightness_contrast,
    channel_adaptive_gray,
    channel_exchange,
    color_jitter,
    invert,
)
from mmmlib.reference.augment._geometry import (
    horizontal_flip,
    linear_transform,
    random_crop,
    random_erasing,
)
from mmmlib.reference.augment._views import augment, infrared_view, two_views

__all__ = [
    "augment",
    "brightness_contrast",
    "channel_adaptive_gray",
    "channel_exchange",
    "color_jitter",
    "horizontal_flip",
    "infrared_view",
    "invert",
    "linear_transform",
    "random_crop",
    "random_erasing",
    "two_views",
]
