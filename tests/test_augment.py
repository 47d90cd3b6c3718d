import re
from colorsys import hsv_to_rgb, rgb_to_hsv
from math import pi, sin

import pytest
import torch

from mmmlib.reference import augment as module
from mmmlib.reference.augment import (
    augment,
    brightness_contrast,
    channel_adaptive_gray,
    channel_exchange,
    color_jitter,
    horizontal_flip,
    infrared_view,
    invert,
    linear_transform,
    random_crop,
    random_erasing,
    two_views,
)

SINGLE = [
    augment,
    brightness_contrast,
    channel_adaptive_gray,
    channel_exchange,
    color_jitter,
    horizontal_flip,
    infrared_view,
    invert,
    linear_transform,
    random_crop,
    random_erasing,
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return torch.rand(64, 3, 20, 12)


@pytest.mark.parametrize("function", SINGLE)
def test_shape_range_dtype_and_argument_are_kept_and_the_seed_decides(function, images):
    copy, state = images.clone(), torch.get_rng_state()
    result = function(images, generator(1))
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    assert result.min() >= 0
    assert result.max() <= 1
    assert torch.equal(images, copy)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(result, function(images, generator(1)))
    assert not torch.equal(result, function(images, generator(2)))


@pytest.mark.parametrize("function", SINGLE)
def test_an_empty_batch_and_half_precision_are_fine(function, images):
    assert function(images[:0], generator()).shape == (0, 3, 20, 12)
    assert function(images.half(), generator()).dtype == torch.float16


@pytest.mark.parametrize("function", SINGLE)
def test_every_image_gets_a_draw_of_its_own(function):
    alike = torch.rand(1, 3, 20, 12).expand(64, 3, 20, 12)
    assert len(function(alike, generator()).flatten(1).unique(dim=0)) > 1


def test_a_flip_mirrors_all_none_or_half(images):
    assert torch.equal(horizontal_flip(images, generator(), share=1.0), images.flip(-1))
    assert torch.equal(horizontal_flip(images, generator(), share=0.0), images)
    result = horizontal_flip(images, generator())
    mirrored = (result == images.flip(-1)).flatten(1).all(dim=1)
    untouched = (result == images).flatten(1).all(dim=1)
    assert (mirrored ^ untouched).all()
    assert 16 < mirrored.sum() < 48


def test_a_negative_changes_bright_and_dark_of_all_none_or_half(images):
    assert torch.equal(invert(images, generator(), share=1.0), 1 - images)
    assert torch.equal(invert(images, generator(), share=0.0), images)
    result = invert(images, generator())
    assert 16 < (result == 1 - images).flatten(1).all(dim=1).sum() < 48
    both = augment(images, generator(), pad=0, flip=0.0, erase=0.0, negative=1.0)
    assert torch.equal(both, 1 - images)


def test_a_crop_is_a_window_of_the_padded_image(images):
    result = random_crop(images, generator(), pad=2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    moves = set()
    for before, after in zip(padded, result, strict=True):
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(before[:, top : top + 20, left : left + 12], after)
        ]
        assert len(found) == 1
        moves.add(found[0])
    assert {top for top, _ in moves} == {left for _, left in moves} == set(range(5))
    assert torch.equal(random_crop(images, generator(), pad=0), images)


def test_erasing_fills_one_rectangle_of_the_wanted_size():
    images = torch.full((300, 3, 40, 30), 2.0)
    result = random_erasing(images, generator(), share=1.0, fill=(0.1, 0.2, 0.3))
    shares = []
    for image in result:
        erased = (image != 2).all(dim=0)
        rows, columns = erased.any(dim=1).nonzero(), erased.any(dim=0).nonzero()
        height, width = (int(side.max() - side.min()) + 1 for side in (rows, columns))
        assert erased.sum() == height * width
        assert height < 40
        assert width < 30
        assert torch.equal(image[:, rows[0, 0], columns[0, 0]], torch.tensor([0.1, 0.2, 0.3]))
        assert 0.2 < height / width < 5
        shares.append(height * width / 1200)
    assert 0.01 < min(shares) < 0.05
    assert 0.3 < max(shares) < 0.45


def test_erasing_spares_images_by_chance_and_when_nothing_fits(images):
    changed = (random_erasing(images, generator()) != images).flatten(1).any(dim=1)
    assert 16 < changed.sum() < 48
    huge = random_erasing(images, generator(), share=1.0, area=(5.0, 6.0))
    assert torch.equal(huge, images)


def test_erasing_reaches_every_pixel():
    images = torch.ones(2000, 1, 6, 5)
    erased = (random_erasing(images, generator(), share=1.0) != 1).sum(dim=0)
    assert (erased > 0).all()


def test_a_fill_of_another_number_of_channels_is_averaged():
    images = torch.ones(20, 1, 10, 10)
    result = random_erasing(images, generator(), share=1.0, fill=(0.1, 0.2, 0.6))
    torch.testing.assert_close(result.unique(), torch.tensor([0.3, 1.0]))
    single = random_erasing(images, generator(), share=1.0, fill=0.0)
    assert single.unique().tolist() == [0, 1]


def which(images, result):
    """The channel copied into each image: 0 to 2, 3 for gray, 4 for none."""
    luma = (images * torch.tensor([0.2989, 0.5870, 0.1140])[:, None, None]).sum(1, keepdim=True)
    options = [images[:, [channel]].expand_as(images) for channel in range(3)]
    options += [luma.expand_as(images), images]
    equal = torch.stack([torch.isclose(result, option).flatten(1).all(1) for option in options])
    assert (equal.sum(dim=0) == 1).all()
    return torch.bincount(equal.int().argmax(dim=0), minlength=5)


def test_channel_exchange_copies_each_channel_equally_often():
    images = torch.rand(900, 3, 3, 3)
    counts = which(images, channel_exchange(images, generator()))
    assert ((counts[:3] - 300).abs() < 60).all()
    assert counts[3:].tolist() == [0, 0]
    counts = which(images, channel_exchange(images, generator(), gray=True))
    assert ((counts[:4] - 225).abs() < 55).all()
    assert counts[4] == 0


def test_channel_adaptive_gray_copies_a_channel_or_turns_gray_or_does_nothing():
    images = torch.rand(1600, 3, 3, 3)
    counts = which(images, channel_adaptive_gray(images, generator()))
    assert ((counts - torch.tensor([400, 400, 400, 200, 200])).abs() < 70).all()
    assert which(images, channel_adaptive_gray(images, generator(), share=1.0))[4] == 0


def test_two_channels_have_a_gray_too():
    images = torch.tensor([0.2, 0.6]).view(1, 2, 1, 1).expand(200, 2, 1, 1)
    result = channel_exchange(images, generator(), gray=True)
    torch.testing.assert_close(result.unique(), torch.tensor([0.2, 0.4, 0.6]))


@pytest.mark.parametrize("function", [channel_exchange, channel_adaptive_gray])
def test_channel_operators_leave_one_channel_alone(function):
    images = torch.rand(5, 1, 4, 4)
    assert function(images, generator()) is images


def test_brightness_and_contrast_are_linear_in_each_image():
    images = 0.4 + 0.2 * torch.rand(200, 1, 8, 8)
    brighter = brightness_contrast(images, generator(), brightness=0.5, contrast=0.0)
    ratio = (brighter / images).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert 0.5 <= ratio.min() < 0.6
    assert 1.4 < ratio.max() <= 1.5
    stronger = brightness_contrast(images, generator(), brightness=0.0, contrast=0.5)
    torch.testing.assert_close(stronger.mean((1, 2, 3)), images.mean((1, 2, 3)))
    spread = stronger.std((1, 2, 3)) / images.std((1, 2, 3))
    assert 0.5 <= spread.min() < 0.6
    assert 1.4 < spread.max() <= 1.5


ONLY = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def jittered(images, **ranges):
    return color_jitter(images, generator(), **(ONLY | ranges))


def luma(images):
    weights = torch.tensor([0.2989, 0.5870, 0.1140])
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


def test_color_jitter_without_ranges_changes_nothing(images):
    torch.testing.assert_close(jittered(images), images, atol=1e-6, rtol=0)


def test_brightness_contrast_and_saturation_scale_what_they_should():
    images = 0.45 + 0.1 * torch.rand(300, 3, 6, 5)
    for name, middle in (
        ("brightness", torch.zeros(300, 1, 1, 1)),
        ("contrast", luma(images).mean(dim=(1, 2, 3), keepdim=True)),
        ("saturation", luma(images)),
    ):
        changed = jittered(images, **{name: 0.5})
        before, after = (images - middle).flatten(1), (changed - middle).flatten(1)
        factor = (before * after).sum(dim=1) / before.square().sum(dim=1)
        torch.testing.assert_close(after, factor[:, None] * before, atol=1e-5, rtol=1e-3)
        assert 0.5 <= factor.min() < 0.55
        assert 1.45 < factor.max() <= 1.5 + 1e-4


def test_hue_turns_the_colour_circle_and_nothing_else():
    images = torch.rand(60, 3, 2, 2)
    turned = jittered(images, hue=0.5)
    turns = []
    for before, after in zip(images.permute(0, 2, 3, 1), turned.permute(0, 2, 3, 1), strict=True):
        pairs = list(zip(before.reshape(4, 3).tolist(), after.reshape(4, 3).tolist(), strict=True))
        hues = [(rgb_to_hsv(*new)[0] - rgb_to_hsv(*old)[0]) % 1 for old, new in pairs]
        turns.append(hues[0])
        for old, new in pairs:
            hue, saturation, value = rgb_to_hsv(*old)
            assert new == pytest.approx(hsv_to_rgb(hue + hues[0], saturation, value), abs=1e-4)
    turns = torch.tensor(turns)
    assert turns.min() < 0.1
    assert turns.max() > 0.9
    assert ((turns > 0.4) & (turns < 0.6)).any()


def test_gray_has_no_hue_and_no_saturation():
    images = torch.rand(20, 1, 3, 3).expand(20, 3, 3, 3)
    changed = jittered(images, saturation=1.0, hue=0.5)
    torch.testing.assert_close(changed, images, atol=2e-4, rtol=0)  # luma's weights sum to 0.9999
    single = images[:, :1]
    changed = color_jitter(single, generator(), saturation=1.0, hue=0.5)
    assert changed.shape == single.shape
    assert not torch.allclose(changed, single)


def test_the_order_of_the_changes_is_an_image_s_own():
    """Contrast before brightness cuts a bright image off; after it, another one comes out."""
    images = torch.tensor([0.2, 0.9]).expand(400, 1, 1, 2)
    result = color_jitter(images, generator(), brightness=0.5, contrast=1.0)
    again = generator()
    by = torch.tensor([0.5, 1.0]) * (2 * torch.rand(400, 4, generator=again) - 1)[:, :2]
    bright, stretch = (column[:, None, None, None] for column in by.T)

    def brighten(x):
        return (x * (1 + bright)).clamp(0, 1)

    def contrast(x):
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        return (mean + (x - mean) * (1 + stretch)).clamp(0, 1)

    options = [contrast(brighten(images)), brighten(contrast(images))]
    equal = [torch.isclose(result, x, atol=1e-5).flatten(1).all(dim=1) for x in options]
    assert (equal[0] | equal[1]).all()
    for one, other in (equal, equal[::-1]):
        assert (one & ~other).sum() > 60


def test_a_linear_transform_of_one_round_scales_one_rectangle_by_a_factor_for_each_channel():
    images = 0.1 + 0.4 * torch.rand(500, 3, 12, 8)
    result = linear_transform(images, generator(), share=1.0, rounds=1)
    peaks = []
    for before, after in zip(images, result, strict=True):
        changed = before != after
        assert torch.equal(changed, changed[:1].expand_as(changed))
        rows, columns = changed[0].any(dim=1), changed[0].any(dim=0)
        assert torch.equal(changed[0], rows[:, None] & columns)
        assert changed[0].sum() == rows.sum() * columns.sum()
        for channel in range(3):
            ratio = (after / before)[channel][changed[0]]
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
            peaks.append(after[channel][changed[0]].max())
    peaks = torch.stack(peaks)  # of Beta(1/2, 1/2), whose quantile is sin(pi u / 2) ** 2
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert (peaks <= sin(pi * share / 2) ** 2).float().mean() == pytest.approx(share, abs=0.05)


def test_a_linear_transform_ends_when_a_factor_is_small_enough():
    images = 0.1 + 0.8 * torch.rand(40, 3, 24, 12)
    results = [
        linear_transform(images, generator(), share=1.0, rounds=rounds) for rounds in (40, 200)
    ]
    for result in results:
        assert ((result / images).amin(dim=(1, 2, 3)) <= 1e-6 + 1e-9).float().mean() > 0.95
        assert result.max() <= 1
    early = linear_transform(images, generator(), share=1.0, darkest=1.0, rounds=200)
    assert ((early != images).flatten(2).float().mean(dim=2) < 0.5).all()  # one rectangle each


def test_a_linear_transform_leaves_black_images_black_and_spares_images_by_chance(images):
    black = torch.zeros(4, 3, 20, 12)
    assert torch.equal(linear_transform(black, generator(), share=1.0), black)
    half = images.clone()
    half[:, 1] = 0
    result = linear_transform(half, generator(), share=1.0)
    assert torch.isfinite(result).all()
    assert not result[:, 1].any()
    untouched = (linear_transform(images, generator(), share=0.5) == images).flatten(1).all(dim=1)
    assert 16 < untouched.sum() < 48
    assert torch.equal(linear_transform(images, generator(), share=0.0), images)


def test_augment_does_nothing_when_everything_is_off(images):
    assert torch.equal(augment(images, generator(), pad=0, flip=0.0, erase=0.0), images)


def test_the_second_view_shows_one_channel_and_the_first_all(images):
    first, second = two_views(images, generator(), jitter=0.3)
    assert torch.equal(second, second[:, :1].expand_as(second))  # also where it was erased
    assert not torch.allclose(first, first[:, :1].expand_as(first))


def test_the_parts_of_two_views_are_off_when_asked_for(images):
    off = {"pad": 0, "flip": 0.0, "erase": 0.0}
    first, second = two_views(images, generator(), **off)
    assert torch.equal(first, images)
    assert which(images, second)[:3].sum() == len(images)
    scaled, _ = two_views(images, generator(), **off, linear=1.0)
    changed = (scaled != images).flatten(1).any(dim=1)
    assert changed.all()
    assert (scaled <= 1).all()
    _, jittered = two_views(images, generator(), **off, jitter=0.5)
    same = [torch.isclose(jittered[:, 0], images[:, i]).flatten(1).all(dim=1) for i in range(3)]
    assert not torch.stack(same).any()


def test_an_infrared_view_copies_a_channel_or_turns_gray_or_does_nothing():
    images = torch.rand(1600, 3, 3, 3)
    off = {"pad": 0, "flip": 0.0, "erase": 0.0}
    counts = which(images, infrared_view(images, generator(), **off))
    assert ((counts - torch.tensor([400, 400, 400, 200, 200])).abs() < 70).all()
    single = images[:, :1]
    assert torch.equal(infrared_view(single, generator(), **off), single)
    brighter = infrared_view(single, generator(), **off, jitter=0.5)
    assert (brighter != single).flatten(1).any(dim=1).all()


def test_the_draws_leave_the_generator_where_another_device_would(images):
    """The number of draws depends on the shape only, so that devices agree in every later draw."""
    for function in [*SINGLE, two_views]:
        states = []
        for given in (images, torch.zeros_like(images)):
            drawn = generator()
            function(given, drawn)
            states.append(drawn.get_state())
        assert torch.equal(*states)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("function", SINGLE)
def test_a_gpu_gives_the_same_images_and_is_never_waited_for(function, images):
    there = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = function(there, generator())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), function(images, generator()), atol=1e-4, rtol=1e-3)


def test_errors_name_the_argument(images):
    for function in SINGLE:
        with pytest.raises(
            ValueError,
            match=re.escape(
                "images must be a floating-point tensor (n, channels, height, width), "
                "got torch.uint8 of shape (64, 3, 20, 12)"
            ),
        ):
            function(images.byte(), generator())
    with pytest.raises(ValueError, match=re.escape("share must be in [0, 1], got 1.5")):
        horizontal_flip(images, generator(), share=1.5)
    with pytest.raises(ValueError, match=re.escape("brightness must be in [0, 1], got 2")):
        brightness_contrast(images, generator(), brightness=2)
    with pytest.raises(ValueError, match=re.escape("hue must be in [0, 0.5], got 0.6")):
        color_jitter(images, generator(), hue=0.6)
    with pytest.raises(ValueError, match=re.escape("saturation must be in [0, 1], got -1")):
        color_jitter(images, generator(), saturation=-1)
    with pytest.raises(ValueError, match="rounds must be a whole number of at least 1, got 0"):
        linear_transform(images, generator(), rounds=0)
    with pytest.raises(ValueError, match=re.escape("darkest must be in [0, 1], got 2")):
        linear_transform(images, generator(), darkest=2)
    with pytest.raises(ValueError, match="tries must be a whole number of at least 1, got 0"):
        random_erasing(images, generator(), tries=0)
    with pytest.raises(ValueError, match="pad must be a whole number of at least 0, got -1"):
        random_crop(images, generator(), pad=-1)
    with pytest.raises(TypeError, match=r"torch\.from_numpy converts an array"):
        random_crop(images.numpy(), generator())


def test_all_public_functions_are_tested():
    tested = {function.__name__ for function in SINGLE} | {two_views.__name__}
    assert set(module.__all__) == tested
