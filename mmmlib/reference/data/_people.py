"""Rendered persons as a data set."""

from pathlib import Path

from mmmlib.reference.data._table import DataSet, Images, Options
from mmmlib.reference.people import People, render_people

PERSONS, TRAIN = 80, 60


def load_people(data_dir: Path | None, options: Options) -> DataSet:
    """The first 60 persons of a seed for training, 20 more for the test; all walk to the camera.

    Seen from any side they are too hard for a small network without other images to begin with:
    its clusters do not agree with the identities.
    """
    people = render_people(
        PERSONS,
        options.instances,
        seed=options.seed,
        height=options.height,
        width=options.width,
        yaw=0.0,
    )
    dark, train = people.infrared(), people.identities <= TRAIN
    parts = (train & ~dark, train & dark, ~train & dark, ~train & ~dark)
    visible, infrared, query, gallery = (_images(people.rows(part)) for part in parts)
    return DataSet(visible, infrared, query, gallery, "sysu-all", "people")


def _images(people: People) -> Images:
    return Images(people.pixels, people.identities, people.cameras, people.names)
