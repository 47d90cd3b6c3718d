"""Miniature trees in every layout of the published data sets, right and wrong."""

import os
import re
from pathlib import Path

import pytest
import torch

from mmmlib.evaluation import draw_gallery
from mmmlib.reference.data import (
    PUBLISHED,
    Count,
    Photo,
    Tree,
    count_photos,
    findings,
    load,
    read_tree,
)
from mmmlib.reference.data._files import read_images
from mmmlib.reference.data._trees import SYSU_LISTS

pillow = pytest.importorskip("PIL.Image")

VISIBLE, INFRARED = (1, 2, 4, 5), (3, 6)
TRAIN, VAL, TEST = (12, 3), (40,), (7, 501)
SIZES = {"height": 4, "width": 2}


def draw(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.new("RGB", (6, 8), (value, value, value)).save(path, quality=100)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def value_of(identity: int, camera: int, image: int) -> int:
    """A grey value that tells the images of the trees apart."""
    return 20 * (identity % 8) + 3 * camera + image


def grey(images, name: str) -> int:
    return int(images.pixels[images.names.index(name), 0, 0, 0])


def columns(photos: tuple[Photo, ...]) -> set[tuple[int, int]]:
    return {(photo.identity, photo.camera) for photo in photos}


@pytest.fixture
def sysu(tmp_path: Path) -> Path:
    """Five identities; 12 lacks camera 2, 501 has three images of camera 4 instead of two."""
    root = tmp_path / "SYSU-MM01"
    for name, people in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        write(root / f"exp/{name}_id.txt", ",".join(map(str, people)) + "\n")
    write(root / "exp/available_id.txt", "3,7,12,40,501,502")
    for person in (*TRAIN, *VAL, *TEST, 502):
        for camera in range(1, 7):
            n = 0 if (person, camera) == (12, 2) else 2 + ((person, camera) == (501, 4))
            for image in range(n, 0, -1):  # not in the order of the names
                path = root / f"cam{camera}/{person:04d}/{image:04d}.jpg"
                draw(path, value_of(person, camera, image))
    return root


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the miniature trees hold, in place of what is published."""
    mini = {
        "sysu": (Count(3, 22, VISIBLE), Count(3, 12, INFRARED), Count(2, 8, INFRARED),
                 Count(2, 17, VISIBLE)),
        "regdb": (Count(2, 4, (1,)), Count(2, 4, (2,)), Count(2, 4, (2,)), Count(2, 4, (1,))),
        "llcm": (Count(2, 4, ()), Count(2, 2, ()), Count(2, 2, (1,)), Count(2, 4, (1, 3))),
    }  # fmt: skip
    for name, sides in mini.items():
        keys = ("visible", "infrared", "query", "gallery")
        monkeypatch.setitem(PUBLISHED, name, dict(zip(keys, sides, strict=True)))
    for name, people in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        monkeypatch.setitem(SYSU_LISTS, name, len(people))


def prepare_sysu(root: Path, into: Path) -> Path:
    """The layout that the published scripts copy SYSU-MM01 into."""
    for camera in range(1, 7):
        modality = "ir_modify" if camera in INFRARED else "rgb_modify"
        for path in sorted((root / f"cam{camera}").glob("*/*.jpg")):
            person = int(path.parent.name)
            if person == 502:
                continue
            part = "bounding_box_train"
            if person in TEST:
                part = "query" if path.name == "0001.jpg" else "bounding_box_test"
            copy = into / modality / part / f"{path.parent.name}_c{camera}_{path.name}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return into


@pytest.fixture
def regdb(tmp_path: Path) -> Path:
    """Four identities, two images each; trial 2 trains on 5 and 180, trial 1 on 9 and 33."""
    root = tmp_path / "RegDB"
    for modality, word in (("Visible", "visible"), ("Thermal", "thermal")):
        for person in (5, 9, 33, 180):
            for image in (1, 2):
                name = f"{modality}/{person}/male_{word[0]}_{image}_{person}.bmp"
                draw(root / name, value_of(person, len(word), image))
        for trial, train, test in ((1, (9, 33), (5, 180)), (2, (180, 5), (33, 9))):
            for split, people in (("train", train), ("test", test)):
                lines = [
                    f"{modality}/{person}/male_{word[0]}_{image}_{person}.bmp {label}"
                    for label, person in enumerate(people)
                    for image in (2, 1)
                ]
                write(root / f"idx/{split}_{word}_{trial}.txt", "\n".join(lines) + "\n")
    return root


def prepare_regdb(root: Path, into: Path, trial: int) -> Path:
    """As published: the query is the first images of the test images, copied once more."""
    for word, modality in (("visible", "rgb_modify"), ("thermal", "ir_modify")):
        for split, parts in (("train", ["bounding_box_train"]), ("test", ["bounding_box_test"])):
            for line in (root / f"idx/{split}_{word}_{trial}.txt").read_text().splitlines():
                path, label = line.split(" ")
                first = split == "test" and "_1_" in path
                for part in [*parts, "query"] if first else parts:
                    copy = into / modality / str(trial) / part / f"{label}_c1_{Path(path).name}"
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes((root / path).read_bytes())
    return into


@pytest.fixture
def llcm(tmp_path: Path) -> Path:
    """Training identities 1 and 8, test identities 30 and 900."""
    root = tmp_path / "LLCM"
    for word, cameras in (("vis", (1, 9)), ("nir", (4,))):
        lines = []
        for label, person in enumerate((8, 1)):
            for camera in cameras:
                name = f"{word}/{person:04d}/{person:04d}_c{camera:02d}_s1_f2_{word}.jpg"
                draw(root / name, value_of(person, camera, 0))
                lines.append(f"{name} {label}")
        write(root / f"idx/train_{word}.txt", "\n".join(lines))
    for word, cameras in (("vis", (1, 3)), ("nir", (1,))):
        for person in (30, 900):
            for camera in cameras:
                name = f"test_{word}/cam{camera}/{person:04d}/{person:04d}_c{camera:02d}_a.jpg"
                draw(root / name, value_of(person, camera, 1))
    write(root / "idx/test_id.txt", "900,30")
    return root


def test_sysu_trains_on_training_and_validation_identities(sysu: Path, counts: None) -> None:
    data = load("sysu", sysu, **SIZES)
    assert data.name == "sysu"
    assert data.protocol == "sysu-all"
    assert set(data.visible.identities.tolist()) == set(TRAIN + VAL)
    assert set(data.infrared.identities.tolist()) == set(TRAIN + VAL)
    assert set(data.query.identities.tolist()) == set(data.gallery.identities.tolist()) == {7, 501}
    assert data.visible.cameras.unique().tolist() == data.gallery.cameras.unique().tolist()
    assert data.visible.cameras.unique().tolist() == list(VISIBLE)
    assert data.query.cameras.unique().tolist() == list(INFRARED)
    assert data.visible.pixels.shape == (22, 3, 4, 2)
    assert data.visible.pixels.dtype == torch.uint8


def test_pixels_identities_and_cameras_are_joined_by_name(sysu: Path, counts: None) -> None:
    for images in load("sysu", sysu, **SIZES)[:4]:
        assert list(images.names) == sorted(set(images.names))
        rows = zip(images.names, images.identities.tolist(), images.cameras.tolist(), strict=True)
        for name, identity, camera in rows:
            folder, person, file = name.split("/")
            assert (folder, int(person)) == (f"cam{camera}", identity)
            value = value_of(identity, camera, int(Path(file).stem))
            assert abs(grey(images, name) - value) <= 1


def test_the_prepared_layout_gives_the_same_images_and_the_same_galleries(
    sysu: Path, tmp_path: Path, counts: None
) -> None:
    official = load("sysu", sysu, **SIZES)
    prepared = load("sysu", prepare_sysu(sysu, tmp_path / "prepared"), **SIZES)
    for first, second in zip(official[:4], prepared[:4], strict=True):
        moved = {f"{name[5:9]}_c{name[3]}_{name[10:]}": row for row, name in enumerate(first.names)}
        order = torch.tensor([moved[name] for name in second.names])
        assert sorted(moved) == list(second.names)
        assert torch.equal(first.pixels[order], second.pixels)
        assert torch.equal(first.identities[order], second.identities)
        assert torch.equal(first.cameras[order], second.cameras)
    for trial in range(10):
        pixels = [
            side.pixels[
                draw_gallery(side.identities, side.cameras, protocol="sysu-all", trial=trial)
            ]
            for side in (official.gallery, prepared.gallery)
        ]
        assert torch.equal(*pixels)


def test_where_both_layouts_are_there_the_official_one_is_read(sysu: Path) -> None:
    prepare_sysu(sysu, sysu)
    assert read_tree("sysu", sysu).layout == "official"
    (sysu / "cam6").rename(sysu / "elsewhere")
    assert read_tree("sysu", sysu).layout == "prepared"


def test_galleries_of_the_published_code_are_drawn_from_a_tree(recording, tmp_path: Path) -> None:
    case = recording("sysu_gallery")
    for name in case["files"]:
        write(tmp_path / name, "")
    for camera in range(1, 7):
        (tmp_path / f"cam{camera}").mkdir(exist_ok=True)
    write(tmp_path / "exp/train_id.txt", "1000")
    write(tmp_path / "exp/val_id.txt", "1001")
    write(tmp_path / "exp/test_id.txt", ",".join(map(str, case["test_ids"].tolist())))
    tree = read_tree("sysu", tmp_path)
    assert sorted(photo.name for photo in tree.query) == sorted(case["query"].tolist())
    identities = torch.tensor([photo.identity for photo in tree.gallery])
    cameras = torch.tensor([photo.camera for photo in tree.gallery])
    for search in ("all", "indoor"):
        for shots in (1, 10):
            for trial, expected in enumerate(case[f"{search}_shot{shots}"].tolist()):
                drawn = draw_gallery(
                    identities, cameras, protocol=f"sysu-{search}", trial=trial, shots=shots
                )
                assert [tree.gallery[row].name for row in drawn] == expected


@pytest.mark.parametrize(("trial", "people"), [(1, {9, 33}), (2, {5, 180})])
def test_regdb_is_split_by_its_trial(
    regdb: Path, counts: None, trial: int, people: set[int]
) -> None:
    data = load("regdb", regdb, trial=trial, **SIZES)
    assert data.protocol == "regdb"
    for images in (data.visible, data.infrared):
        assert set(images.identities.tolist()) == people
    for images in (data.query, data.gallery):
        assert set(images.identities.tolist()) == {5, 9, 33, 180} - people
    assert data.visible.cameras.unique().tolist() == data.gallery.cameras.unique().tolist() == [1]
    assert data.infrared.cameras.unique().tolist() == data.query.cameras.unique().tolist() == [2]
    for word, images in (("visible", data.visible), ("thermal", data.infrared)):
        assert list(images.names) == sorted(images.names)
        for name, identity in zip(images.names, images.identities.tolist(), strict=True):
            assert name.startswith(f"{word.capitalize()}/{identity}/")
            image = int(name.split("_")[2])
            assert grey(images, name) == value_of(identity, len(word), image)


def test_prepared_regdb_has_no_image_twice_and_test_identities_of_its_own(
    regdb: Path, tmp_path: Path, counts: None
) -> None:
    prepare_regdb(regdb, tmp_path / "prepared", 2)
    tree = read_tree("regdb", tmp_path / "prepared", trial=2)
    assert tree.layout == "prepared"
    assert not findings("regdb", tree)
    assert columns(tree.visible) == {(0, 1), (1, 1)}
    assert columns(tree.infrared) == {(0, 2), (1, 2)}
    assert columns(tree.gallery) == {(1000, 1), (1001, 1)}
    assert columns(tree.query) == {(1000, 2), (1001, 2)}
    assert len({photo.name for photo in tree.query}) == len(tree.query) == 4


def test_llcm_takes_cameras_from_names_in_training_and_from_folders_in_the_test(
    llcm: Path, counts: None
) -> None:
    data = load("llcm", llcm, **SIZES)
    assert data.protocol == "llcm"
    rows = zip(data.visible.identities.tolist(), data.visible.cameras.tolist(), strict=True)
    assert list(rows) == [(1, 1), (1, 9), (8, 1), (8, 9)]
    assert data.infrared.cameras.tolist() == [4, 4]
    assert data.query.names == (
        "test_nir/cam1/0030/0030_c01_a.jpg",
        "test_nir/cam1/0900/0900_c01_a.jpg",
    )
    rows = zip(data.gallery.identities.tolist(), data.gallery.cameras.tolist(), strict=True)
    assert list(rows) == [(30, 1), (900, 1), (30, 3), (900, 3)]
    name = "vis/0008/0008_c09_s1_f2_vis.jpg"
    assert abs(grey(data.visible, name) - value_of(8, 9, 0)) <= 1


def test_prepared_llcm_is_read_like_prepared_sysu(llcm: Path, tmp_path: Path, counts: None) -> None:
    into = tmp_path / "prepared"
    official = read_tree("llcm", llcm)
    places = (
        (official.visible, "rgb_modify/bounding_box_train"),
        (official.infrared, "ir_modify/bounding_box_train"),
        (official.query, "ir_modify/bounding_box_test"),
        (official.gallery, "rgb_modify/query"),
    )
    for photos, place in places:
        for photo in photos:
            draw(into / place / f"{photo.identity:04d}_c{photo.camera}_{photo.path.name}")
    prepared = read_tree("llcm", into)
    assert not findings("llcm", prepared)
    for first, second in zip(official[:4], prepared[:4], strict=True):
        assert columns(first) == columns(second)


def link_all(root: Path, names: list[str]) -> None:
    """Many names for one image: as large as the published data sets, and made in no time."""
    image = draw(root / "image.jpg")
    for folder in sorted({Path(name).parent for name in names}):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        os.link(image, root / name)


def test_a_tree_with_the_published_counts_of_regdb_is_right(tmp_path: Path) -> None:
    names = []
    for modality, word in (("Visible", "visible"), ("Thermal", "thermal")):
        images = [
            [f"{modality}/{person}/{image}.bmp" for image in range(10)] for person in range(1, 413)
        ]
        names += [name for some in images for name in some]
        for split, people in (("train", images[::2]), ("test", images[1::2])):
            lines = [f"{name} {label}" for label, some in enumerate(people) for name in some]
            write(tmp_path / f"idx/{split}_{word}_1.txt", "\n".join(lines))
    link_all(tmp_path, names)
    tree = read_tree("regdb", tmp_path)
    assert findings("regdb", tree) == []
    assert count_photos(tree.query) == Count(206, 2060, (2,))


def test_the_published_counts_agree_with_the_published_totals() -> None:
    totals = {
        name: [sum(count.images for count in sides.values())] for name, sides in PUBLISHED.items()
    }
    assert totals == {"sysu": [29033 + 15712], "regdb": [412 * 10 * 2], "llcm": [46767]}
    people = {
        name: sides["visible"].identities + sides["gallery"].identities
        for name, sides in PUBLISHED.items()
    }
    assert people == {"sysu": 491, "regdb": 412, "llcm": 1064}
    assert SYSU_LISTS["train"] + SYSU_LISTS["val"] == PUBLISHED["sysu"]["visible"].identities


def test_a_right_tree_has_no_findings(sysu: Path, regdb: Path, llcm: Path, counts: None) -> None:
    for name, root in (("sysu", sysu), ("regdb", regdb), ("llcm", llcm)):
        assert findings(name, read_tree(name, root)) == []


def test_a_lost_folder_is_named_by_side_and_identity(sysu: Path, counts: None) -> None:
    for path in sysu.glob("cam[36]/0003/*"):
        path.unlink()
    assert findings("sysu", read_tree("sysu", sysu)) == [
        "training, infrared: no image of identity 3",
        "training, infrared: 2 identities, 3 are published: 1 missing",
        "training, infrared: 8 images, 12 are published: 4 missing",
    ]


def test_a_forgotten_validation_list_is_named(sysu: Path, counts: None) -> None:
    write(sysu / "exp/val_id.txt", "12")  # which train_id.txt has too
    found = findings("sysu", read_tree("sysu", sysu))
    assert found[0] == "training, visible: 2 identities, 3 are published: 1 missing"
    write(sysu / "exp/val_id.txt", "12, 3\n40\n")  # other separators, and too many
    found = findings("sysu", read_tree("sysu", sysu))
    assert found == ["exp/val_id.txt names 3 identities, 1 are published"]


def test_an_identity_on_both_sides_is_named(sysu: Path, counts: None) -> None:
    write(sysu / "exp/val_id.txt", "501")
    found = findings("sysu", read_tree("sysu", sysu))
    assert "identity 501 in training and in test" in found
    assert "training, visible: 24 images, 22 are published: 2 too many" not in found
    assert "training, visible: 23 images, 22 are published: 1 too many" in found


def test_missing_and_surplus_cameras_are_named(sysu: Path, counts: None) -> None:
    for path in sysu.glob("cam6/*/*"):
        path.unlink()
    found = findings("sysu", read_tree("sysu", sysu))
    assert "training, infrared: no image of camera 6" in found
    assert "test, infrared: no image of camera 6" in found
    strange = (Photo("a.jpg", 3, 9, Path("a.jpg")),)
    tree = read_tree("sysu", sysu)._replace(query=strange)
    assert "test, infrared: images of camera 9, which is not published" in findings("sysu", tree)


def test_missing_files_of_a_list_are_named(regdb: Path, counts: None) -> None:
    (regdb / "Thermal/9/male_t_2_9.bmp").unlink()
    assert findings("regdb", read_tree("regdb", regdb)) == [
        "training, infrared: 3 images, 4 are published: 1 missing",
        "training, infrared: Thermal/9/male_t_2_9.bmp is not there",
    ]
    data = load("regdb", regdb, allow_incomplete=True, **SIZES)
    assert data.infrared.identities.tolist() == [33, 33, 9]


def test_every_missing_file_and_identity_is_named(sysu: Path, regdb: Path) -> None:
    lines = [f"Visible/9/{image}.bmp 0" for image in range(10, 40)]
    write(regdb / "idx/train_visible_1.txt", "\n".join(lines))
    assert read_tree("regdb", regdb).missing == tuple(
        f"training, visible: Visible/9/{image}.bmp is not there" for image in range(10, 40)
    )
    write(sysu / "exp/train_id.txt", ",".join(map(str, (12, 3, 41, 42, 43, 99))))
    assert "training, infrared: no image of identities 41-43, 99" in read_tree("sysu", sysu).faults


def test_a_label_that_stands_for_two_identities_is_named(regdb: Path) -> None:
    path = regdb / "idx/train_thermal_1.txt"
    write(path, path.read_text().replace("Thermal/33/male_t_2_33", "Thermal/9/male_t_2_9"))
    assert read_tree("regdb", regdb).faults == (
        "idx/train_thermal_1.txt: label 1 is identity 9 in Thermal/9/male_t_2_9.bmp, "
        "and identity 33 elsewhere",
    )


def test_a_name_that_says_nothing_is_named(sysu: Path, tmp_path: Path, counts: None) -> None:
    root = prepare_sysu(sysu, tmp_path / "prepared")
    draw(root / "ir_modify/bounding_box_train/photo.jpg")
    assert findings("sysu", read_tree("sysu", root)) == [
        "ir_modify/bounding_box_train: photo.jpg does not begin with <identity>_c<camera>_"
    ]


def test_what_systems_leave_behind_is_no_image(sysu: Path, counts: None) -> None:
    folder = sysu / "cam1/0012"
    for name in ("._0001.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "0001.jpg.txt"):
        write(folder / name, "nothing")
    (folder / "more.jpg").mkdir()
    write(sysu / "__MACOSX/._cam1", "nothing")
    assert findings("sysu", read_tree("sysu", sysu)) == []
    load("sysu", sysu, **SIZES)


def test_links_are_followed_and_links_to_nowhere_are_named(
    sysu: Path, tmp_path: Path, counts: None
) -> None:
    (sysu / "cam4").rename(tmp_path / "elsewhere")
    (sysu / "cam4").symlink_to(tmp_path / "elsewhere")
    image = sysu / "cam1/0012/0001.jpg"
    image.rename(tmp_path / "moved.jpg")
    image.symlink_to(tmp_path / "moved.jpg")
    assert findings("sysu", read_tree("sysu", sysu)) == []
    (tmp_path / "moved.jpg").unlink()
    assert findings("sysu", read_tree("sysu", sysu)) == [
        "training, visible: 21 images, 22 are published: 1 missing",
        "training, visible: cam1/0012/0001.jpg is not there",
    ]


def test_names_may_be_in_any_script(sysu: Path, tmp_path: Path, counts: None) -> None:
    root = tmp_path / "数据 é😀"
    sysu.rename(root)
    image = root / "cam1/0012/0001.jpg"
    image.rename(image.with_name("zwölf 十二.JPG"))
    data = load("sysu", str(root), **SIZES)
    assert "cam1/0012/zwölf 十二.JPG" in data.visible.names


def test_a_name_that_is_no_text_can_be_told(sysu: Path, counts: None) -> None:
    folder = os.fsencode(sysu / "cam1/0012")
    try:
        (sysu / "cam1/0012/0001.jpg").rename(os.fsdecode(folder + b"/\xff.jpg"))
    except OSError:
        pytest.skip("this file system takes text only")
    assert findings("sysu", read_tree("sysu", sysu)) == []
    write(sysu / "cam1/0012" / os.fsdecode(b"\xff.jpg"), "")
    with pytest.raises(ValueError, match=r"/cam1/0012/\\xff\.jpg'") as caught:
        load("sysu", sysu, **SIZES)
    assert str(caught.value).encode()


def test_a_folder_joins_identities_whatever_way_accents_are_written(tmp_path: Path) -> None:
    composed, apart = "\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"
    draw(tmp_path / "visible" / composed / "1.png")
    draw(tmp_path / "visible" / "\N{LATIN SMALL LETTER U WITH DIAERESIS}" / "1.png")
    draw(tmp_path / "infrared" / apart / "1.png")
    draw(tmp_path / "infrared" / apart / "._1.png")
    data = load("folder", tmp_path, **SIZES)
    assert data.visible.identities.tolist() == data.infrared.identities.tolist() == [0]


def test_reading_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    paths = [draw(tmp_path / f"{value}.png", value) for value in range(40)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = read_images(paths, 3, 5)
        torch.set_num_threads(4)
        assert torch.equal(read_images(paths, 3, 5), one)
    finally:
        torch.set_num_threads(threads)
    assert one[:, 0, 0, 0].tolist() == list(range(40))
    assert one.shape == (40, 3, 3, 5)


def test_a_tree_without_test_images_trains_only(sysu: Path) -> None:
    for path in sysu.glob("cam*/0[05]0[17]/*"):
        path.unlink()
    data = load("sysu", sysu, allow_incomplete=True, **SIZES)
    assert data.query is None
    assert data.gallery is None
    assert len(data.visible.names) == 22


def refuse(error: type[Exception], message: str, name: str, root: Path | None, **options) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        load(name, root, **options)


def test_errors_of_a_wrong_tree_say_what_is_wrong_and_how_to_go_on(sysu: Path) -> None:
    refuse(
        ValueError,
        f"data_dir must hold sysu as it is published, got '{sysu.as_posix()}' with "
        "exp/train_id.txt names 2 identities, 296 are published; "
        "exp/val_id.txt names 1 identity, 99 are published; "
        "exp/test_id.txt names 2 identities, 96 are published; and 8 more "
        "(mmmlib doctor lists everything, --allow-incomplete takes it as it is)",
        "sysu",
        sysu,
    )


def test_errors_of_a_missing_folder_name_the_path_and_the_layout(
    tmp_path: Path, sysu: Path, regdb: Path, llcm: Path
) -> None:
    missing = tmp_path / "nowhere"
    refuse(
        FileNotFoundError,
        f"data_dir must be a directory, got '{missing.as_posix()}'; expected in it: "
        "cam1 to cam6 and exp, or the prepared rgb_modify and ir_modify",
        "sysu",
        missing,
    )
    refuse(
        FileNotFoundError,
        "data_dir must be a directory, got None; expected in it: Visible, Thermal and idx, "
        "or the prepared rgb_modify and ir_modify",
        "regdb",
        None,
    )
    (sysu / "cam6").rename(tmp_path / "cam6")
    refuse(
        FileNotFoundError,
        "data_dir must hold cam1 to cam6 and exp, or the prepared rgb_modify and ir_modify, "
        f"got '{sysu.as_posix()}' without cam6",
        "sysu",
        sysu,
    )
    refuse(
        FileNotFoundError,
        "data_dir must hold idx, vis, nir, test_vis and test_nir, or the prepared rgb_modify and "
        f"ir_modify, got '{tmp_path.as_posix()}' without idx, test_vis, test_nir; "
        f"'{llcm.as_posix()}' holds it",
        "llcm",
        tmp_path,
    )
    refuse(
        FileNotFoundError,
        f"data_dir must be a directory, got '{missing.as_posix()}'; visible/<identity>/*.jpg and "
        "infrared/<identity>/*.jpg are expected in it",
        "folder",
        missing,
    )


def test_errors_of_lists_name_the_file(sysu: Path, regdb: Path) -> None:
    path = write(sysu / "exp/train_id.txt", "3,twelve")
    refuse(
        ValueError,
        f"data_dir must hold whole numbers in '{path.as_posix()}', got 'twelve'",
        "sysu",
        sysu,
    )
    path.unlink()
    refuse(FileNotFoundError, f"data_dir must hold '{path.as_posix()}': No such", "sysu", sysu)
    path = regdb / "idx/train_visible_11.txt"
    refuse(FileNotFoundError, f"data_dir must hold '{path.as_posix()}': ", "regdb", regdb, trial=11)
    path = write(regdb / "idx/train_visible_1.txt", "Visible/9/a.bmp 0\nVisible/9/b.bmp\n")
    refuse(
        ValueError,
        f"data_dir must hold '<path> <number>' in every line of '{path.as_posix()}', "
        "got 'Visible/9/b.bmp' in line 2",
        "regdb",
        regdb,
    )
    write(path, "Visible/nine/a.bmp 0")
    refuse(
        ValueError,
        f"data_dir must hold '<modality>/<identity>/<image>' in '{path.as_posix()}', "
        "got 'Visible/nine/a.bmp'",
        "regdb",
        regdb,
    )


def test_errors_of_a_broken_image_name_the_first(sysu: Path, counts: None) -> None:
    whole = (sysu / "cam2/0003/0002.jpg").read_bytes()
    (sysu / "cam5/0003/0002.jpg").write_bytes(b"")
    broken = sysu / "cam2/0003/0002.jpg"
    broken.write_bytes(whole[: len(whole) // 2])
    refuse(
        ValueError,
        f"data_dir must hold readable images, got '{broken.as_posix()}': ",
        "sysu",
        sysu,
        **SIZES,
    )


def test_errors_of_arguments_name_the_argument(sysu: Path) -> None:
    refuse(ValueError, "trial must be a whole number of at least 1, got 0", "sysu", sysu, trial=0)
    with pytest.raises(ValueError, match=r"^name must be 'sysu', 'regdb' or 'llcm', got 'hubble'$"):
        read_tree("hubble", sysu)


def test_errors_of_an_empty_training_side(sysu: Path) -> None:
    for camera in INFRARED:
        for path in sysu.glob(f"cam{camera}/*/*"):
            path.unlink()
    refuse(
        ValueError,
        f"data_dir must hold images for training, infrared, got none in '{sysu.as_posix()}'",
        "sysu",
        sysu,
        allow_incomplete=True,
    )


def test_a_tree_is_its_four_sides() -> None:
    assert Tree._fields[:4] == tuple(PUBLISHED["sysu"])
