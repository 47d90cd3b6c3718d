"""Rendered persons as a data set."""

from pathlib import Path

from mmmlib.reference.data._table import DataSet, Images, Options
from mmmlib.reference.people import INFRARED_CAMERAS, VISIBLE_CAMERAS, People, render_people

TRAIN, TEST = range(1, 151), range(151, 201)


def load_people(data_dir: Path | None, options: Options) -> DataSet:
    """The first 150 persons of a seed for training, 50 more for the test.

    The cameras of a modality share its images of a person, each having as many as the others.
    """
    visible, gallery = _render(VISIBLE_CAMERAS, options)
    infrared, query = _render(INFRARED_CAMERAS, options)
    return DataSet(visible, infrared, query, gallery, "sysu-all", "people")


def _render(cameras: tuple[int, ...], options: Options) -> tuple[Images, Images]:
    """Images of all persons by some cameras: for training, for the test."""
    people = render_people(
        [*TRAIN, *TEST],
        -(-options.instances // len(cameras)),
        seed=options.seed,
        height=options.height,
        width=options.width,
        cameras=cameras,
    )
    train = people.identities < TEST.start
    return _images(people.rows(train)), _images(people.rows(~train))


def _images(people: People) -> Images:
    return Images(people.pixels, people.identities, people.cameras, people.names)
