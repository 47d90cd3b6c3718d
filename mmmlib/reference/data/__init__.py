"""Data sets as rows of one table: images in memory, with what is known about each."""

from mmmlib.reference.data._features import synthetic_features
from mmmlib.reference.data._load import DATA_SETS, load
from mmmlib.reference.data._published import PUBLISHED, Count, count_photos, findings
from mmmlib.reference.data._scenes import hubble_windows, patches, windows
from mmmlib.reference.data._table import DataSet, Images, Options
from mmmlib.reference.data._trees import Photo, Tree, read_tree

__all__ = [
    "DATA_SETS",
    "PUBLISHED",
    "Count",
    "DataSet",
    "Images",
    "Options",
    "Photo",
    "Tree",
    "count_photos",
    "findings",
    "hubble_windows",
    "load",
    "patches",
    "read_tree",
    "synthetic_features",
    "windows",
]
