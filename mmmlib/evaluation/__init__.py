"""Retrieval protocols, and agreement of pseudo-labels with identities."""

from mmmlib.evaluation._association import AssociationReport, association_report
from mmmlib.evaluation._protocols import Protocol as Protocol
from mmmlib.evaluation._protocols import draw_gallery
from mmmlib.evaluation._ranking import (
    Evaluation,
    RankingMetrics,
    average_trials,
    evaluate,
    ranking_metrics,
)

__all__ = [
    "AssociationReport",
    "Evaluation",
    "RankingMetrics",
    "association_report",
    "average_trials",
    "draw_gallery",
    "evaluate",
    "ranking_metrics",
]
