"""Image files: which there are, and their pixels."""

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")


def say(path: Path | None) -> str:
    """A path for a message."""
    if path is None:
        return "None"
    return f"'{printable(path.as_posix())}'"


def printable(text: str) -> str:
    """A name without the bytes that no encoding knows, which can't be printed."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder; links that go round in a circle do not."""
    try:
        return path.is_dir()
    except OSError:
        return False


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder by name, links followed; none where there is no folder.

    A link to nowhere is listed, so that somebody notices. Hidden files are not: macOS leaves a
    ``._`` file beside every image.
    """
    if not is_folder(folder):
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not is_folder(folder / entry.name)]
    return [
        folder / name
        for name in sorted(names)
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]


def read_images(paths: Sequence[Path], height: int, width: int) -> Tensor:
    """Decode and resize the images into one uint8 tensor (n, 3, height, width), in their order.

    As many images at a time as torch may use threads. Memory: the tensor, and an image a thread.
    """
    pixels = torch.empty(len(paths), 3, height, width, dtype=torch.uint8)
    rows = pixels.numpy()

    def fill(row: int) -> None:
        rows[row] = read_image(paths[row], height, width)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(len(paths))))
    return pixels


def read_image(path: Path, height: int, width: int) -> np.ndarray:
    """The image as uint8 (3, height, width)."""
    from PIL import Image

    broken = (OSError, SyntaxError, ValueError, EOFError, struct.error)
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"8 bits a channel are needed, its mode is {image.mode}")
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    except (*broken, Image.DecompressionBombError) as error:
        raise ValueError(f"data_dir must hold readable images, got {say(path)}: {error}") from error
    return np.asarray(resized).transpose(2, 0, 1)


def unreadable(paths: Sequence[Path]) -> list[str]:
    """Open every image to its last pixel; a sentence for each that can't be."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return [fault for fault in pool.map(_fault_of, paths) if fault]


def _fault_of(path: Path) -> str | None:
    try:
        read_image(path, 1, 1)
    except ValueError as error:
        return f"{say(path)} is no readable image: {error.__cause__}"
    return None
