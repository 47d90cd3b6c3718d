"""Images of your own, in a folder for each modality."""

import unicodedata
from pathlib import Path
from typing import NamedTuple

import torch

from mmmlib.reference.data._files import images_in, read_images, say
from mmmlib.reference.data._table import DataSet, Images, Options


class _File(NamedTuple):
    name: str
    identity: str | None
    path: Path


def load_folder(data_dir: Path | None, options: Options) -> DataSet:
    """Images in ``visible/<identity>/`` and ``infrared/<identity>/``, or directly in the two.

    Identities are the names of the sub-folders of both, sorted and numbered together. Test images
    lie in ``test/visible`` and ``test/infrared``; without a folder ``test`` the last half of the
    identities is held out. Without identities there is no test set.
    """
    if data_dir is None or not data_dir.is_dir():
        raise FileNotFoundError(
            f"data_dir must be a directory, got {say(data_dir)}; "
            "visible/<identity>/*.jpg and infrared/<identity>/*.jpg are expected in it"
        )
    train, test = _list_sides(data_dir), None
    if (data_dir / "test").is_dir():
        test = _list_sides(data_dir / "test")
        if not _known(*test):
            raise ValueError(
                f"data_dir must hold a folder for each identity in test, got {say(data_dir)} "
                "with images alone"
            )
    elif _known(*train):
        people = sorted({str(file.identity) for side in train for file in side})
        kept = set(people[: (len(people) + 1) // 2])
        test = tuple([file for file in side if file.identity not in kept] for side in train)
        train = tuple([file for file in side if file.identity in kept] for side in train)
    if not all(train):
        raise ValueError(
            f"data_dir must hold training images of both modalities, got one in {say(data_dir)}"
        )
    sides = (*train, *reversed(test)) if test and all(test) else train
    found = {file.identity for side in sides for file in side if file.identity is not None}
    numbers = {identity: number for number, identity in enumerate(sorted(found))}
    read = [_read(side, numbers, options) for side in sides]
    query, gallery = read[2:] or (None, None)
    return DataSet(read[0], read[1], query, gallery, "plain", "folder")


def _known(*sides: list[_File]) -> bool:
    return all(file.identity is not None for side in sides for file in side)


def _list_sides(root: Path) -> tuple[list[_File], ...]:
    """The images of both modalities by name, and of whom each is."""
    return tuple(_list_side(root, side) for side in ("visible", "infrared"))


def _list_side(root: Path, side: str) -> list[_File]:
    folder = root / side
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data_dir must hold visible and infrared, got {say(root)} without {side}"
        )
    files = [_File(path.name, None, path) for path in images_in(folder)]
    for person in sorted(folder.iterdir()):
        if not person.name.startswith("."):
            identity = unicodedata.normalize("NFC", person.name)  # macOS takes accents apart
            files += [
                _File(f"{person.name}/{path.name}", identity, path) for path in images_in(person)
            ]
    if len({file.identity is None for file in files}) != 1:
        seen = "both" if files else "no image"
        raise ValueError(
            f"data_dir must hold images in {side}, all of them in folders of identities or none, "
            f"got {seen} in {say(folder)}"
        )
    return sorted(files)


def _read(files: list[_File], numbers: dict[str, int], options: Options) -> Images:
    pixels = read_images([file.path for file in files], options.height, options.width)
    identities = None
    if _known(files):
        people = [numbers[str(file.identity)] for file in files]
        identities = torch.tensor(people, dtype=torch.int64)
    cameras = torch.zeros(len(files), dtype=torch.int64)
    return Images(pixels, identities, cameras, tuple(file.name for file in files))
