import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mmmlib.reference.data import (
    DATA_SETS,
    Images,
    hubble_windows,
    load,
    patches,
    synthetic_features,
    windows,
)

pytest.importorskip("skimage")
pillow = pytest.importorskip("PIL.Image")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def coordinates(height, width):
    """A picture whose two bands are the row and the column of each pixel."""
    row, column = torch.arange(height), torch.arange(width)
    bands = torch.stack([row[:, None].expand(height, width), column.expand(height, width)])
    return bands.to(torch.uint8)


def rows_and_names_agree(images):
    n = len(images.names)
    assert images.pixels.dtype == torch.uint8
    assert images.pixels.ndim == 4
    assert images.pixels.shape[0] == n
    assert images.cameras.shape == (n,)
    assert images.cameras.dtype == torch.int64
    assert images.identities is None or images.identities.shape == (n,)
    assert list(images.names) == sorted(set(images.names))
    return True


def same(first, second):
    return first.names == second.names and torch.equal(first.pixels, second.pixels)


def test_windows_without_jitter_are_the_tiles_of_the_picture():
    image = coordinates(30, 42)
    cut = patches(image, window=10, margin=4, jitter=0, instances=3, generator=generator())
    assert rows_and_names_agree(cut)
    assert cut.pixels.shape == (2 * 3 * 3, 2, 10, 10)
    assert torch.equal(cut.identities, torch.arange(6).repeat_interleave(3))
    mirrored = 0
    for pixels, identity in zip(cut.pixels, cut.identities.tolist(), strict=True):
        top, left = 4 + 10 * (identity // 3), 4 + 10 * (identity % 3)
        tile = image[:, top : top + 10, left : left + 10]
        assert torch.equal(pixels, tile) or torch.equal(pixels, tile.flip(-1))
        mirrored += int(torch.equal(pixels, tile.flip(-1)))
    assert 0 < mirrored < 18


def test_jitter_moves_crops_by_every_step_up_to_its_limit():
    image = coordinates(30, 42)
    cut = patches(image, window=10, margin=4, jitter=3, instances=400, generator=generator())
    top = cut.pixels[:, 0].amin((1, 2)).long() - (4 + 10 * (cut.identities // 3))
    left = cut.pixels[:, 1].amin((1, 2)).long() - (4 + 10 * (cut.identities % 3))
    assert top.unique().tolist() == left.unique().tolist() == list(range(-3, 4))
    assert abs(top.float().mean()) < 0.2
    assert abs(left.float().mean()) < 0.2


def test_crops_of_neighbouring_column_ranges_share_no_pixel():
    image = coordinates(30, 42)
    options = {"window": 10, "margin": 4, "jitter": 4, "instances": 200}
    first = patches(image, **options, generator=generator(), columns=(0, 1))
    second = patches(image, **options, generator=generator(), columns=(1, 3))
    assert first.identities.unique().tolist() == [0, 3]
    assert second.identities.unique().tolist() == [1, 2, 4, 5]
    assert first.pixels[:, 1].amin() == 0
    assert first.pixels[:, 1].amax() == 13
    assert second.pixels[:, 1].amin() == 14
    assert second.pixels[:, 1].amax() == 37


def test_both_modalities_draw_their_crops_alone():
    visible, infrared = windows("synthetic", instances=10, jitter=0)
    sides = [images.pixels.flatten(1).double() for images in (visible, infrared)]
    correlation = torch.stack(
        [torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(*sides, strict=True)]
    )
    assert torch.equal(visible.identities, infrared.identities)
    assert 0.4 < (correlation < -0.7).double().mean() < 0.6  # the others are mirrored in one only


@pytest.mark.parametrize("name", ["hubble", "synthetic"])
def test_a_scene_has_disjoint_training_and_test_identities(name):
    data = load(name, instances=2)
    assert all(rows_and_names_agree(images) for images in data[:4])
    assert data.protocol == "plain"
    assert data.name == name
    train, test = data.visible.identities.unique(), data.gallery.identities.unique()
    assert torch.equal(train, data.infrared.identities.unique())
    assert torch.equal(test, data.query.identities.unique())
    assert not set(train.tolist()) & set(test.tolist())


def test_hubble_has_the_documented_counts():
    data = load("hubble", instances=2)
    assert data.visible.pixels.shape == (2 * 187, 1, 48, 48)
    assert data.query.pixels.shape == (2 * 153, 1, 48, 48)
    visible, infrared = hubble_windows(instances=2)
    assert visible.pixels.shape == infrared.pixels.shape == (2 * 340, 1, 48, 48)
    assert len(visible.identities.unique()) == 340


def test_hubble_blue_is_visible_and_red_is_infrared():
    from skimage.data import hubble_deep_field

    picture = torch.from_numpy(hubble_deep_field())
    for images, band in zip(hubble_windows(instances=1, jitter=0), (2, 0), strict=True):
        tile = picture[8:56, 8:56, band]
        crop = images.pixels[0, 0]
        assert torch.equal(crop, tile) or torch.equal(crop.flip(-1), tile)


def test_the_seed_decides_everything():
    first, again, other = (load("synthetic", instances=2, seed=seed) for seed in (1, 1, 2))
    assert all(same(*pair) for pair in zip(first[:4], again[:4], strict=True))
    assert not same(first.visible, other.visible)
    assert same(hubble_windows(1, 5)[0], hubble_windows(1, 5)[0])
    assert not same(hubble_windows(1, 5)[0], hubble_windows(1, 6)[0])


def test_landsat_has_the_documented_counts():
    path = os.environ.get("MMMLIB_LANDSAT")
    if not path:
        pytest.skip("MMMLIB_LANDSAT is not set")
    data = load("landsat", path, instances=3)
    assert data.visible.pixels.shape == (3 * 187, 3, 20, 20)
    assert data.query.pixels.shape == (3 * 85, 3, 20, 20)
    assert len(windows("landsat", path, instances=1, window=24)[0].names) == 14 * 14


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_geotiff_may_keep_its_bands_first_or_last(tmp_path, channels_last):
    from tifffile import imwrite

    bands = (np.arange(6)[:, None, None] * 40 + np.zeros((6, 100, 300))).astype(np.uint8)
    path = tmp_path / "scene.tif"
    imwrite(path, bands.transpose(1, 2, 0) if channels_last else bands, photometric="minisblack")
    data = load("landsat", path, instances=1)
    assert data.bands  # infrared channels that differ
    assert not load("synthetic").bands  # only one
    assert [data.visible.pixels[0, channel].unique().item() for channel in range(3)] == [0, 40, 80]
    assert [data.query.pixels[0, channel].unique().item() for channel in range(3)] == [
        120,
        160,
        200,
    ]


def draw(path, value=0, size=(10, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Identities a, b and c; b lacks infrared images, d visible ones."""
    for number, name in enumerate(["a/2.png", "a/1.jpg", "b/1.bmp", "c/1.png"]):
        draw(tmp_path / "visible" / name, 10 * number)
    for number, name in enumerate(["a/9.png", "c/1.tif", "d/1.png", "c/0.jpeg"]):
        draw(tmp_path / "infrared" / name, 100 + 10 * number)
    return tmp_path


def test_a_folder_holds_out_the_last_half_of_its_identities(folder):
    data = load("folder", folder, height=8, width=4)
    assert all(rows_and_names_agree(images) for images in data[:4])
    assert data.visible.names == ("a/1.jpg", "a/2.png", "b/1.bmp")
    assert data.visible.identities.tolist() == [0, 0, 1]
    assert data.infrared.names == ("a/9.png",)
    assert data.gallery.names == ("c/1.png",)
    assert data.query.names == ("c/0.jpeg", "c/1.tif", "d/1.png")
    assert data.query.identities.tolist() == [2, 2, 3]
    assert data.visible.pixels.shape == (3, 3, 8, 4)
    assert data.visible.pixels[:, 0, 0, 0].tolist() == [10, 0, 20]


def test_a_test_folder_is_the_test_set(folder):
    draw(folder / "test" / "visible" / "x" / "1.png")
    draw(folder / "test" / "infrared" / "x" / "1.png")
    data = load("folder", folder)
    assert len(data.visible.names) == len(data.infrared.names) == 4
    assert data.visible.identities.tolist() == [0, 0, 1, 2]
    assert data.infrared.identities.tolist() == [0, 2, 2, 3]
    assert data.query.identities.tolist() == data.gallery.identities.tolist() == [4]
    assert data.visible.pixels.shape[2:] == (288, 144)


def test_a_folder_without_identities_is_training_data_only(tmp_path):
    draw(tmp_path / "visible" / "2.png", 7)
    draw(tmp_path / "visible" / "10.PNG")
    draw(tmp_path / "infrared" / "1.jpg")
    (tmp_path / "visible" / "readme.txt").write_text("not an image")
    draw(tmp_path / "visible" / ".thumbnails" / "1.png")
    data = load("folder", str(tmp_path), height=4, width=4)
    assert rows_and_names_agree(data.visible)
    assert data.visible.names == ("10.PNG", "2.png")
    assert data.visible.identities is None
    assert data.query is None
    assert data.gallery is None


def test_a_single_identity_leaves_nothing_to_test(tmp_path):
    draw(tmp_path / "visible" / "a" / "1.png")
    draw(tmp_path / "infrared" / "a" / "1.png")
    data = load("folder", tmp_path)
    assert data.visible.identities.tolist() == data.infrared.identities.tolist() == [0]
    assert data.query is None


def test_gray_and_transparent_images_become_three_channels(tmp_path):
    (tmp_path / "visible").mkdir()
    (tmp_path / "infrared").mkdir()
    pillow.new("L", (4, 4), 9).save(tmp_path / "visible" / "1.png")
    pillow.new("RGBA", (4, 4), (1, 2, 3, 4)).save(tmp_path / "infrared" / "1.png")
    data = load("folder", tmp_path, height=2, width=2)
    assert data.visible.pixels[0, :, 0, 0].tolist() == [9, 9, 9]
    assert data.infrared.pixels[0, :, 0, 0].tolist() == [1, 2, 3]


def nearest(first, second, identities):
    return identities[(first @ second.T).argmax(dim=1)]


def test_synthetic_features_are_unit_rows_ordered_by_identity():
    visible, infrared, visible_identities, infrared_identities = synthetic_features(
        5, instances=3, dim=16
    )
    assert visible.shape == infrared.shape == (15, 16)
    assert visible.dtype == torch.float32
    torch.testing.assert_close(visible.norm(dim=1), torch.ones(15))
    torch.testing.assert_close(infrared.norm(dim=1), torch.ones(15))
    expected = torch.arange(5).repeat_interleave(3)
    assert torch.equal(visible_identities, expected)
    assert torch.equal(infrared_identities, expected)


def test_without_gap_shift_spread_and_noise_an_identity_is_one_row():
    visible, infrared, identities, _ = synthetic_features(
        6, modality_gap=0.0, camera_shift=0.0, mode_spread=0.0, noise=0.0
    )
    torch.testing.assert_close(visible, infrared)
    assert (nearest(visible, infrared, identities) == identities).all()
    assert len(visible.unique(dim=0)) == 6


def test_the_gap_moves_a_modality_as_a_whole():
    visible, infrared, identities, _ = synthetic_features(20, modality_gap=3.0)
    assert (visible @ visible.T).mean() > (visible @ infrared.T).mean() + 0.3
    centred = [torch.nn.functional.normalize(x - x.mean(0), dim=1) for x in (visible, infrared)]
    assert (nearest(*centred, identities) == identities).float().mean() > 0.9


def test_rows_of_one_camera_and_of_one_pose_are_closer():
    visible, _, identities, _ = synthetic_features(
        1, instances=40, cameras=2, camera_shift=1.0, modes=1, noise=0.1
    )
    camera = torch.arange(40) % 2
    similarity = visible @ visible.T
    alike = camera[:, None] == camera
    assert similarity[alike].min() > similarity[~alike].max()
    poses = synthetic_features(
        1, instances=40, modes=3, mode_spread=1.0, camera_shift=0.0, noise=0.0
    )[0]
    assert len((poses @ poses.T > 0.999).unique(dim=0)) == 3
    assert len(identities.unique()) == 1


@pytest.mark.parametrize(("absent", "lost"), [(0.0, (0, 0)), (0.5, (2, 3)), (1.0, (5, 5))])
def test_absent_identities_lack_one_modality_in_turn(absent, lost):
    _, _, visible, infrared = synthetic_features(10, instances=2, absent=absent)
    found = set(visible.tolist()), set(infrared.tolist())
    assert found[0] | found[1] == set(range(10))
    assert (10 - len(found[0]), 10 - len(found[1])) == lost
    assert len(visible) == 2 * len(found[0])


def test_synthetic_features_come_from_their_seed_alone():
    state = torch.get_rng_state()
    first, again, other = (synthetic_features(4, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_table_names_its_data_sets():
    assert {"folder", "hubble", "landsat", "synthetic"} <= set(DATA_SETS)
    assert isinstance(load("synthetic", instances=1).visible, Images)


def refuse(error, message, name, data_dir=None, **options):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        load(name, data_dir, **options)


def test_errors_of_arguments_name_the_argument():
    refuse(ValueError, "name must be ", "sky")
    refuse(
        ValueError, "instances must be a whole number of at least 1, got 0", "hubble", instances=0
    )
    refuse(ValueError, "jitter must be in [0, 8], got 9", "hubble", jitter=9)
    refuse(ValueError, "height must be a whole number of at least 1, got 0", "folder", height=0)
    with pytest.raises(ValueError, match=re.escape("absent must be in [0, 1], got 2")):
        synthetic_features(3, absent=2)
    with pytest.raises(
        ValueError, match="n_identities must be a whole number of at least 1, got 0"
    ):
        synthetic_features(0)
    with pytest.raises(
        ValueError, match="image must be at least 18 pixels high and wide, got 12 x 40"
    ):
        patches(
            coordinates(12, 40), window=10, margin=4, jitter=0, instances=1, generator=generator()
        )


def test_errors_of_missing_files_say_what_is_missing(tmp_path):
    refuse(FileNotFoundError, "data_dir must be a TIFF file, got None", "landsat")
    missing = tmp_path / "no.tif"
    refuse(
        FileNotFoundError,
        f"data_dir must be a TIFF file, got '{missing.as_posix()}'",
        "landsat",
        missing,
    )
    refuse(FileNotFoundError, "data_dir must be a directory, got None", "folder")
    (tmp_path / "visible").mkdir()
    draw(tmp_path / "visible" / "1.png")
    refuse(
        FileNotFoundError,
        f"data_dir must hold visible and infrared, got '{tmp_path.as_posix()}' without infrared",
        "folder",
        tmp_path,
    )


def test_errors_of_a_wrong_tiff_say_what_it_holds(tmp_path):
    path = tmp_path / "scene.tif"
    path.write_text("this is text")
    refuse(ValueError, f"data_dir must be a TIFF file, got '{path.as_posix()}': ", "landsat", path)
    draw(path)
    refuse(
        ValueError,
        "data_dir must hold 6 bands of uint8, got torch.uint8 of shape (20, 10, 3) "
        f"in '{path.as_posix()}'",
        "landsat",
        path,
    )


def test_errors_of_a_folder_name_the_file(folder):
    broken = folder / "visible" / "a" / "0.png"
    broken.write_bytes(b"no image")
    refuse(
        ValueError,
        f"data_dir must hold readable images, got '{broken.as_posix()}': ",
        "folder",
        folder,
    )
    whole = (folder / "visible" / "a" / "2.png").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    refuse(
        ValueError,
        f"data_dir must hold readable images, got '{broken.as_posix()}': ",
        "folder",
        folder,
    )
    pillow.new("I;16", (4, 4)).save(broken)
    refuse(
        ValueError,
        f"data_dir must hold readable images, got '{broken.as_posix()}': "
        "8 bits a channel are needed, its mode is I;16",
        "folder",
        folder,
    )


def test_errors_of_a_mixed_or_empty_folder(folder):
    sentence = (
        "data_dir must hold images in {}, all of them in folders of identities or none, "
        "got {} in '{}'"
    )
    draw(folder / "test" / "visible" / "1.png")
    draw(folder / "test" / "infrared" / "1.png")
    refuse(
        ValueError,
        "data_dir must hold a folder for each identity in test, got "
        f"'{folder.as_posix()}' with images alone",
        "folder",
        folder,
    )
    draw(folder / "visible" / "1.png")
    visible = (folder / "visible").as_posix()
    refuse(ValueError, sentence.format("visible", "both", visible), "folder", folder)
    for path in sorted(Path(folder / "visible").rglob("*.*")):
        path.unlink()
    refuse(ValueError, sentence.format("visible", "no image", visible), "folder", folder)


def test_errors_of_a_folder_whose_training_half_lacks_a_modality(tmp_path):
    draw(tmp_path / "visible" / "a" / "1.png")
    draw(tmp_path / "infrared" / "b" / "1.png")
    refuse(
        ValueError,
        "data_dir must hold training images of both modalities, got one in "
        f"'{tmp_path.as_posix()}'",
        "folder",
        tmp_path,
    )
