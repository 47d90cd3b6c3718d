"""Fixtures: a seed for every test, and the recordings of the published implementations."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def recording() -> Callable[[str], Mapping[str, np.ndarray]]:
    """Load a recording by name; skip where MMMLIB_RECORDINGS names no folder."""

    def load(name: str) -> Mapping[str, np.ndarray]:
        folder = os.environ.get("MMMLIB_RECORDINGS")
        if not folder:
            pytest.skip("MMMLIB_RECORDINGS is not set")
        with np.load(Path(folder) / f"{name}.npz") as file:
            return {key: file[key] for key in file.files}

    return load


@pytest.fixture
def tensors(recording: Callable[[str], Mapping[str, np.ndarray]]) -> Callable[..., dict]:
    """A recording with every numeric array as a tensor."""

    def load(name: str) -> dict[str, torch.Tensor]:
        return {
            key: torch.from_numpy(np.asarray(value).copy())
            for key, value in recording(name).items()
            if value.dtype.kind in "biuf"
        }

    return load
