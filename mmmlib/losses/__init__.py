"""Losses of cross-modal clustering: contrast, alignment, consistency, triplets.

All are functions of one batch. Rows labelled -1 are left out, and what is left empty costs a zero
that still has a gradient. Half precision and autocast are fine: sums run in float32 at least,
distances in float64. On a GPU and inside ``torch.compile`` no value is read: a label out of range
counts as -1 there.
"""

from mmmlib.losses._alignment import class_mmd, mmd, prototype_alignment, soft_cluster_alignment
from mmmlib.losses._contrastive import (
    cluster_nce,
    consistency_loss,
    modality_agnostic_nce,
    neighbor_loss,
    soft_cross_entropy,
)
from mmmlib.losses._triplet import batch_hard_triplet, weighted_triplet

__all__ = [
    "batch_hard_triplet",
    "class_mmd",
    "cluster_nce",
    "consistency_loss",
    "mmd",
    "modality_agnostic_nce",
    "neighbor_loss",
    "prototype_alignment",
    "soft_cluster_alignment",
    "soft_cross_entropy",
    "weighted_triplet",
]
