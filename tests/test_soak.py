"""Cycles of clustering, matching and training in one process: memory stays flat."""

import ctypes
import gc
import sys

import pytest
import torch
from tally import count, many

from mmmlib.clustering import cluster_features, prototypes, sub_prototypes
from mmmlib.losses import cluster_nce
from mmmlib.matching import multi_memory_match
from mmmlib.memory import ClusterMemory
from mmmlib.reference.data import synthetic_features

pytestmark = pytest.mark.slow
CYCLES, SETTLED = 20, 8


def resident() -> int:
    """Bytes of the process in memory, after what is free was given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096


def cycle(seed: int) -> None:
    """An epoch on other features and other cluster counts every time."""
    visible, infrared, _, _ = synthetic_features(20 + seed % 7, instances=8, dim=64, seed=seed)
    labels = [cluster_features(side, k1=8, k2=3, eps=0.6) for side in (visible, infrared)]
    sides = [
        sub_prototypes(side, own) for side, own in zip((visible, infrared), labels, strict=True)
    ]
    match = multi_memory_match(*sides)
    shared, _, _ = match.shared_labels(*labels)
    network = torch.nn.Linear(64, 64)
    optimizer = torch.optim.Adam(network.parameters())
    memory = ClusterMemory(prototypes(visible, labels[0]))
    for _ in range(3):
        rows = network(visible)
        optimizer.zero_grad()
        cluster_nce(memory(rows), labels[0]).backward()
        optimizer.step()
        memory.update(rows, labels[0])
    assert len(shared) == len(visible)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_over_cycles_of_clustering_matching_and_training() -> None:
    sizes = []
    for seed in range(many(CYCLES)):
        cycle(seed)
        count("soak: cycles")
        sizes.append(resident())
    settled = sizes[SETTLED]
    count("soak: growth in thousandths", round(1000 * (max(sizes[SETTLED:]) / settled - 1)))
    assert max(sizes[SETTLED:]) <= 1.05 * settled, [size >> 20 for size in sizes]
