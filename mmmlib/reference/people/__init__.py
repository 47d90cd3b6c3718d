"""A data set without files: rendered persons before four visible and two infrared cameras."""

from mmmlib.reference.people._people import (
    INFRARED_CAMERAS,
    VISIBLE_CAMERAS,
    People,
    contact_sheet,
    render_people,
    write_sysu_tree,
)

__all__ = [
    "INFRARED_CAMERAS",
    "VISIBLE_CAMERAS",
    "People",
    "contact_sheet",
    "render_people",
    "write_sysu_tree",
]
