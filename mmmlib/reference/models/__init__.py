"""Networks from images of two modalities to features, and features that need no training."""

from mmmlib.reference.models._embedding import Embedding, extract_features, gem
from mmmlib.reference.models._gradients import gradient_features
from mmmlib.reference.models._resnet import TwoStreamResNet50
from mmmlib.reference.models._small import TwoStreamCNN
from mmmlib.reference.models._weights import load_resnet50, load_weights, read_weights

__all__ = [
    "Embedding",
    "TwoStreamCNN",
    "TwoStreamResNet50",
    "extract_features",
    "gem",
    "gradient_features",
    "load_resnet50",
    "load_weights",
    "read_weights",
]
