"""``python -m mmmlib.reference.people``: rendered persons as files, or on one sheet to look at."""

import argparse
from pathlib import Path

import torch

from mmmlib.reference.people import People, contact_sheet, render_people, write_sysu_tree


def main() -> None:
    """Write what the flags ask for."""
    parser = argparse.ArgumentParser(prog="python -m mmmlib.reference.people", description=__doc__)
    parser.add_argument("--out", type=Path, help="write a tree in the layout of SYSU-MM01 here")
    parser.add_argument("--sheet", type=Path, help="write a sheet here, a line for each person")
    parser.add_argument("--identities", type=int, default=8)
    parser.add_argument("--images", type=int, default=2, help="of each person by each camera")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--yaw", type=float, help="one view for all, in degrees: 0 is the front")
    parser.add_argument("--occlusion", type=float, default=0.2, help="share with something before")
    options = parser.parse_args()
    people = render_people(
        options.identities, options.images, seed=options.seed, height=options.height,
        width=options.width, yaw=options.yaw, occlusion=options.occlusion,
    )  # fmt: skip
    if options.out:
        write_sysu_tree(people, options.out)
        print(f"{len(people.names)} images: {options.out}")
    if options.sheet:
        write_sheet(people, options.sheet)
        print(f"sheet: {options.sheet}")


def write_sheet(people: People, path: Path) -> None:
    """A line for each person, the cameras side by side; few colours keep the file small."""
    from PIL import Image

    keys = zip(people.identities.tolist(), people.cameras.tolist(), people.names, strict=True)
    order = [row for _, row in sorted((key, row) for row, key in enumerate(keys))]
    columns = len(order) // len(set(people.identities.tolist()))
    sheet = contact_sheet(people.rows(torch.tensor(order)), columns=columns)
    picture = Image.fromarray(sheet.permute(1, 2, 0).numpy())
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
