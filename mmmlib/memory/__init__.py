"""Memories of clusters and images: read by ``forward``, written by ``update`` only."""

from mmmlib.memory._banks import ClusterMemory, MultiMemory
from mmmlib.memory._instance import InstanceMemory
from mmmlib.memory._update import update_memory

__all__ = ["ClusterMemory", "InstanceMemory", "MultiMemory", "update_memory"]
