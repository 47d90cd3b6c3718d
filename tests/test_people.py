import re
import runpy

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, normalize

from mmmlib.reference.data import load
from mmmlib.reference.models import gradient_features
from mmmlib.reference.people import (
    INFRARED_CAMERAS,
    VISIBLE_CAMERAS,
    contact_sheet,
    render_people,
    write_sysu_tree,
)
from mmmlib.reference.people._body import Parts, pose
from mmmlib.reference.people._raster import View, draw
from mmmlib.reference.people._wardrobe import Material, Person, Surface, draw_crowd

SMALL = {"height": 48, "width": 24}


@pytest.fixture(scope="module")
def crowd():
    """Forty persons, four images each by two visible and two infrared cameras."""
    return render_people(40, 4, cameras=(1, 3, 4, 6), height=72, width=36)


def by_name(people):
    return dict(zip(people.names, people.pixels, strict=True))


def same(first, second):
    columns = zip(first[:-1], second[:-1], strict=True)
    return first.names == second.names and all(torch.equal(*pair) for pair in columns)


def gradients(people):
    """Gradient features, centred for each camera, as unit rows."""
    features = gradient_features(people.pixels, cells=5)
    for camera in people.cameras.unique():
        rows = people.cameras == camera
        features[rows] -= features[rows].mean(dim=0)
    return normalize(features, dim=1)


def rank_1(features, people, query, gallery):
    nearest = (features[query] @ features[gallery].T).argmax(dim=1)
    return (people.identities[gallery][nearest] == people.identities[query]).float().mean().item()


def test_rows_are_ordered_as_the_files_of_sysu():
    people = render_people(3, 2, **SMALL)
    assert people.pixels.shape == (3 * 2 * 6, 3, 48, 24)
    assert people.pixels.dtype == torch.uint8
    assert people.identities.dtype == people.cameras.dtype == torch.int64
    assert list(people.names) == sorted(set(people.names))
    assert people.names[:3] == ("cam1/0001/0001.jpg", "cam1/0001/0002.jpg", "cam1/0002/0001.jpg")
    for row, name in enumerate(people.names):
        assert name.startswith(f"cam{people.cameras[row]}/{people.identities[row]:04d}/")


def test_the_same_seed_gives_equal_bytes_and_another_seed_other_persons():
    first, again = (render_people(2, 2, seed=5, **SMALL) for _ in range(2))
    other = render_people(2, 2, seed=6, **SMALL)
    assert same(first, again)
    difference = (first.pixels.int() - other.pixels.int()).abs().float().mean(dim=(1, 2, 3))
    assert (difference > 5).all()


def test_an_image_does_not_depend_on_the_others():
    many = by_name(render_people(9, 5, **SMALL))
    few = by_name(render_people([7, 2], 2, cameras=(6, 1), **SMALL))
    assert len(few) == 8
    assert all(torch.equal(pixels, many[name]) for name, pixels in few.items())


def test_global_generators_are_left_alone():
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = states()
    render_people(1, 1, **SMALL)
    assert states() == before


def test_infrared_is_grey_and_visible_is_not(crowd):
    spread = crowd.pixels.amax(dim=1).int() - crowd.pixels.amin(dim=1).int()
    assert (spread[crowd.infrared()] == 0).all()
    assert (spread[~crowd.infrared()].float().mean(dim=(1, 2)) > 3).all()
    assert crowd.cameras[crowd.infrared()].unique().tolist() == [3, 6]
    assert (VISIBLE_CAMERAS, INFRARED_CAMERAS) == ((1, 2, 4, 5), (3, 6))


def test_infrared_reflectance_does_not_follow_colour():
    albedo = draw_crowd([[0, 0, number] for number in range(1500)]).albedo
    for material in (Material.UPPER, Material.FRONT, Material.LOWER, Material.BAG):
        table = np.corrcoef(albedo[:, material].T)
        assert abs(table[3, :3]).max() < 0.08  # three standard errors
        assert table[:3, :3].min() > 0.3  # whereas channels of a colour go together


def test_grey_of_a_garment_in_the_infrared_says_nothing_about_its_colour():
    people = render_people(150, 2, cameras=(1, 4, 3), yaw=0.0, occlusion=0.0, **SMALL)
    chest = people.pixels[:, :, 14:20, 9:15].float().mean(dim=(1, 2, 3))
    grey = [chest[people.cameras == camera].view(150, 2).mean(dim=1) for camera in (1, 4, 3)]
    table = torch.corrcoef(torch.stack(grey))
    assert table[0, 1] > 0.8
    assert table[0, 2].abs() < 0.25
    assert table[1, 2].abs() < 0.25


def test_a_person_is_nearer_to_itself_than_to_others_within_a_modality(crowd):
    features = gradients(crowd)
    similarity = features @ features.T
    alike = crowd.identities[:, None] == crowd.identities
    for first, second in ((1, 4), (3, 6)):
        across = (crowd.cameras == first)[:, None] & (crowd.cameras == second)
        assert similarity[across & alike].mean() > similarity[across & ~alike].mean() + 0.08
    visible = [rank_1(features, crowd, crowd.cameras == a, crowd.cameras == b)
               for a, b in ((1, 4), (4, 1))]  # fmt: skip
    assert min(visible) > 0.3  # chance: 0.025


def test_shape_leads_from_one_modality_to_the_other_and_colour_does_not(crowd):
    infrared = crowd.infrared()
    assert rank_1(gradients(crowd), crowd, infrared, ~infrared) > 0.15  # chance: 0.025
    brightness = adaptive_avg_pool2d(crowd.pixels.float(), (6, 3)).flatten(1)
    for camera in (1, 3, 4, 6):
        rows = crowd.cameras == camera
        brightness[rows] -= brightness[rows].mean(dim=0)
    unit = normalize(brightness, dim=1)
    assert rank_1(unit, crowd, crowd.cameras == 1, crowd.cameras == 4) > 0.15
    assert rank_1(unit, crowd, infrared, ~infrared) < 0.08


def test_yaw_changes_the_view_and_nothing_else():
    views = [render_people(3, 1, yaw=yaw, occlusion=0.0, **SMALL) for yaw in (0.0, 90.0, 360.0)]
    front, side, again = views
    assert torch.equal(front.pixels, again.pixels)
    assert (side.yaw == 90).all()
    assert torch.equal(front.gait, side.gait)
    change = (front.pixels.int() - side.pixels.int()).abs().amax(dim=1)
    middle, corner = change[:, 12:36, 6:18].float().mean(), change[:, :4, :3].float().mean()
    assert middle > 8
    assert corner < 1  # the place, its light and the grain stay


def test_front_and_back_are_printed_differently():
    fronts, backs = (
        render_people(30, 1, cameras=(4,), yaw=yaw, occlusion=0.0, **SMALL) for yaw in (0.0, 180.0)
    )
    chest = (slice(None), slice(None), slice(12, 22), slice(9, 15))
    change = (fronts.pixels[chest].int() - backs.pixels[chest].int()).abs().amax(dim=1)
    assert ((change > 40).float().mean(dim=(1, 2)) > 0.15).sum() > 12


def test_what_is_known_of_a_view_is_in_its_range_and_all_sides_are_seen():
    people = render_people(20, 3, cameras=(1,), **SMALL)
    assert ((people.yaw >= 0) & (people.yaw < 360)).all()
    assert ((people.gait >= 0) & (people.gait < 1)).all()
    quarter = ((people.yaw + 45) % 360 / 90).long()
    assert quarter.bincount(minlength=4).min() > 5  # front, sides and back
    assert ((people.hidden >= 0) & (people.hidden <= 1)).all()


def test_occlusion_hides_persons_and_none_hides_nobody():
    options = {"cameras": (1, 3), **SMALL}
    free, busy = (render_people(15, 4, occlusion=share, **options) for share in (0.0, 1.0))
    assert (free.hidden == 0).all()
    assert (busy.hidden > 0.02).float().mean() > 0.35
    hidden = busy.hidden > 0.3
    assert hidden.any()
    assert not (free.pixels == busy.pixels)[hidden].flatten(1).all(dim=1).any()


def test_a_camera_gives_all_its_images_a_colour(crowd):
    border = crowd.pixels[:, :, :, [0, 1, -2, -1]].float().mean(dim=(2, 3))
    visible = [border[crowd.cameras == camera].mean(dim=0) for camera in (1, 4)]
    assert (visible[0] - visible[1]).abs().max() > 15
    warm = [colour[0] - colour[2] for colour in visible]
    assert warm[0] > warm[1] + 20


def ball(yaw=0.0, near=0.0):
    """A sphere of half a metre around a point one metre above the ground."""
    point = np.array([[[0.0, 1.0, near]]])
    radius = np.full((1, 1, 2), 0.5)
    parts = {"start": point, "end": point - [0, 1e-6, 0], "width": radius, "depth": radius}
    where = {"cap": radius[..., 0], "rows": np.array([[0.0, 1.0]]), "surface": np.array([0])}
    zero, one = np.zeros(1), np.ones(1)
    view = View(one * yaw, zero, zero, 20 * one, 20 * one, 40 * one)
    return {**parts, **where}, view


def shoot(parts, view, albedo=None):
    n = len(parts["start"])
    atlas = np.zeros((n, len(Surface), 24, 32), np.uint8)
    atlas[..., 16:] = Material.FRONT
    colours = np.zeros((n, len(Material), 3), np.float32)
    colours[:, Material.FRONT] = 1
    light, folds = np.array([[0.0, 0, 1, 1]] * n), np.zeros((n, 2))
    return draw(Parts(**parts), view, atlas, colours, light, folds, (40, 40), oversample=4)


def test_a_sphere_is_a_disc_of_its_size_where_it_should_be():
    picture = shoot(*ball())[0]
    assert picture[..., 3].sum() == pytest.approx(np.pi * 10**2, rel=0.01)
    row, column = np.indices((40, 40)) + 0.5
    assert (picture[..., 3] * row).sum() / picture[..., 3].sum() == pytest.approx(20, abs=0.05)
    assert (picture[..., 3] * column).sum() / picture[..., 3].sum() == pytest.approx(20, abs=0.05)


@pytest.mark.parametrize(("yaw", "share"), [(0, 1.0), (60, 0.75), (90, 0.5), (180, 0.0)])
def test_the_front_of_a_turned_sphere_covers_its_share(yaw, share):
    picture = shoot(*ball(np.radians(yaw)))[0]
    assert picture[..., 0].sum() / picture[..., 3].sum() == pytest.approx(share, abs=0.02)


def test_the_nearer_part_hides_the_farther_one():
    near, view = ball(near=0.1)
    far, _ = ball(near=-0.1)
    both = {
        name: np.concatenate([near[name], far[name]], axis=0 if name in ("rows", "surface") else 1)
        for name in near
    }
    both["surface"] = np.array([1, 0])
    alone = shoot({**near, "surface": np.array([1])}, view)
    assert np.array_equal(shoot(both, view), alone)


def one(**measures):
    usual = {"height": 1.7, **dict.fromkeys(["girth", "shoulders", "hips", "legs", "head"], 1.0)}
    cloth = {"thigh": 1.0, "cuff": 1.0, "hem": 0.47, "flare": 1.0, "stride": 0.4, "side": 1.0}
    numbers = {**dict.fromkeys(Person._fields, 0.0), **usual, **cloth, **measures}
    return Person(**{name: np.array([number]) for name, number in numbers.items()})


def test_the_lower_foot_stands_on_the_ground_at_every_phase():
    for phase in np.linspace(0, 1, 9):
        parts = pose(one(), np.array([phase]), np.array([1.0]))
        shoes = parts.surface == Surface.SHOE
        lowest = min(parts.start[0, shoes, 1].min(), parts.end[0, shoes, 1].min())
        assert -0.03 < lowest < 0.06


def test_half_a_step_later_the_other_leg_is_in_front():
    now, then = (pose(one(), np.array([phase]), np.array([1.0])) for phase in (0.25, 0.75))
    legs = np.flatnonzero(now.surface == Surface.LEG)
    np.testing.assert_allclose(now.end[0, legs[:2], 2], then.end[0, legs[2:], 2], atol=1e-9)
    assert now.end[0, legs[1], 2] > now.end[0, legs[3], 2] + 0.3


def test_what_a_person_does_not_wear_is_not_there():
    bare, laden = one(), one(backpack=1.0, long=0.2, hair=0.01, skirt=0.3, handbag=1.0)
    count = [(pose(each, np.zeros(1), np.ones(1)).width[0] > 0).all(axis=1).sum()
             for each in (bare, laden)]  # fmt: skip
    assert count[1] == count[0] + 5


def test_a_tree_can_be_read_again(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    people = render_people(8, 2, **SMALL)
    write_sysu_tree(people, tmp_path)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("cam*/*/*.jpg"))
    assert tuple(found) == people.names
    for row in (0, 40, 95):
        read = torch.from_numpy(np.array(pillow.open(tmp_path / people.names[row])))
        assert read.shape == (48, 24, 3)
        assert (read.permute(2, 0, 1).float() - people.pixels[row].float()).abs().mean() < 6
    lists = [(tmp_path / "exp" / f"{part}_id.txt").read_text() for part in ("train", "val", "test")]
    assert lists == ["1,2,3,4,6\n", "5\n", "7,8\n"]


def test_a_tree_and_a_sheet_are_written_from_the_shell(tmp_path, monkeypatch):
    pytest.importorskip("PIL.Image")
    tree, sheet = tmp_path / "tree", tmp_path / "sheet.png"
    words = f"--out {tree} --sheet {sheet} --identities 4 --images 1 --height 48 --width 24"
    monkeypatch.setattr("sys.argv", ["people", *words.split(), "--yaw", "0", "--occlusion", "0"])
    runpy.run_module("mmmlib.reference.people", run_name="__main__")
    assert len(list(tree.glob("cam*/*/*.jpg"))) == 4 * 6
    assert sheet.is_file()
    read = load("sysu", tree, height=48, width=24, allow_incomplete=True)
    front = render_people(4, 1, yaw=0.0, occlusion=0.0, **SMALL)
    wanted = front.rows((front.identities < 4) & ~front.infrared()).pixels  # one is for the test
    assert (read.visible.pixels.float() - wanted.float()).abs().mean() < 6  # as JPEG keeps them


def test_the_tree_is_what_the_loader_of_sysu_reads(tmp_path):
    pytest.importorskip("PIL.Image")
    people = render_people(8, 1, **SMALL)
    write_sysu_tree(people, tmp_path)
    data = load("sysu", tmp_path, height=48, width=24, allow_incomplete=True)
    assert data.visible.names == people.rows((people.identities < 7) & ~people.infrared()).names
    assert data.infrared.cameras.unique().tolist() == [3, 6]
    assert data.query.identities.unique().tolist() == [7, 8]
    assert data.protocol == "sysu-all"


def test_the_data_set_splits_by_identity_and_has_as_many_images_by_each_camera():
    data = load("people", instances=2, height=24, width=12)
    assert data.visible.pixels.shape == (60 * 4 * 2, 3, 24, 12)
    assert data.infrared.pixels.shape == (60 * 2 * 2, 3, 24, 12)
    assert len(data.query.pixels) == 20 * 2 * 2
    assert len(data.gallery.pixels) == 20 * 4 * 2
    assert data.visible.cameras.bincount().tolist() == [0, 120, 120, 0, 120, 120]
    assert data.query.cameras.bincount().tolist() == [0, 0, 0, 40, 0, 0, 40]
    train, test = (set(images.identities.tolist()) for images in (data.visible, data.query))
    assert (len(train), len(test)) == (60, 20)
    assert not train & test
    assert data.protocol == "sysu-all"


def test_a_contact_sheet_keeps_every_pixel():
    people = render_people(1, 1, **SMALL)
    sheet = contact_sheet(people, columns=4, gap=1)
    assert sheet.shape == (3, 2 * 49 + 1, 4 * 25 + 1)
    assert torch.equal(sheet[:, 1:49, 26:50], people.pixels[1])
    assert torch.equal(sheet[:, 50:98, 1:25], people.pixels[4])
    assert (sheet[:, 50:, 51:] == 255).all()


def refuse(message, **options):
    arguments = {"identities": 2, "images": 1, **SMALL, **options}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        render_people(**arguments)


def test_errors_of_arguments_name_the_argument():
    for name in ("identities", "images", "height", "width"):
        refuse(f"{name} must be a whole number of at least 1, got 0", **{name: 0})
    refuse("identities must be a whole number of at least 1, got -3", identities=[1, -3])
    refuse("seed must be a whole number of at least 0, got -1", seed=-1)
    refuse("cameras must be some of 1 to 6, got (1, 7)", cameras=(1, 7))
    refuse("cameras must be some of 1 to 6, got ()", cameras=())
    refuse("occlusion must be in [0, 1], got 1.5", occlusion=1.5)
    refuse("yaw must be in [-360, 360], got nan", yaw=float("nan"))


def test_errors_of_trees_and_sheets_name_the_argument(tmp_path):
    people = render_people(1, 1, **SMALL)
    with pytest.raises(ValueError, match=re.escape("test must be in [0, 1], got -1")):
        write_sysu_tree(people, tmp_path, test=-1)
    with pytest.raises(ValueError, match=re.escape("quality must be in [1, 95], got 96")):
        write_sysu_tree(people, tmp_path, quality=96)
    with pytest.raises(ValueError, match="columns must be a whole number of at least 1, got 0"):
        contact_sheet(people, columns=0)
    with pytest.raises(ValueError, match="gap must be a whole number of at least 0, got -1"):
        contact_sheet(people, columns=1, gap=-1)
