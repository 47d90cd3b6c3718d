"""Matching of visible clusters to infrared clusters."""

from mmmlib.matching._clusters import match_clusters
from mmmlib.matching._costs import memory_cost
from mmmlib.matching._matchers import (
    bilateral_match,
    match_costs,
    multi_memory_match,
    mutual_match,
    nearest_match,
    progressive_match,
)
from mmmlib.matching._propagation import (
    JoinedLabels,
    PropagatedLabels,
    join_matches,
    match_from_labels,
    propagate_labels,
)
from mmmlib.matching._transfer import rank_labels, reverse_labels, unify_labels, vote_labels
from mmmlib.matching._transport import transport_match, transport_plan

__all__ = [
    "JoinedLabels",
    "PropagatedLabels",
    "bilateral_match",
    "join_matches",
    "match_clusters",
    "match_costs",
    "match_from_labels",
    "memory_cost",
    "multi_memory_match",
    "mutual_match",
    "nearest_match",
    "progressive_match",
    "propagate_labels",
    "rank_labels",
    "reverse_labels",
    "transport_match",
    "transport_plan",
    "unify_labels",
    "vote_labels",
]
