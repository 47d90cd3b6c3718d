"""The few pictures worth having: tensors in, a matplotlib axis out.

Each function draws on the axis it is given, or on one of a new figure; none shows a figure or
changes a setting of matplotlib. ``pip install 'mmmlib[train]'`` brings matplotlib, and the first
call imports it. Colours are told apart by colour-blind eyes too, and never say anything alone.
"""

from mmmlib.plots._clusters import cluster_sizes, k_distance_curve, match_heat_map
from mmmlib.plots._features import distance_histograms, pca_scatter
from mmmlib.plots._strips import identity_strip, retrieval_strip
from mmmlib.plots._training import training_curves

__all__ = [
    "cluster_sizes",
    "distance_histograms",
    "identity_strip",
    "k_distance_curve",
    "match_heat_map",
    "pca_scatter",
    "retrieval_strip",
    "training_curves",
]
