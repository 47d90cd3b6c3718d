import re

import pytest
import torch

from mmmlib.reference import augment as module
from mmmlib.reference.augment import (
    augment,
    brightness_contrast,
    channel_adaptive_gray,
    channel_exchange,
    horizontal_flip,
    invert,
    random_crop,
    random_erasing,
    two_views,
)

SINGLE = [
    augment,
    brightness_contrast,
    channel_adaptive_gray,
    channel_exchange,
    horizontal_flip,
    invert,
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


def test_augment_does_nothing_when_everything_is_off(images):
    assert torch.equal(augment(images, generator(), pad=0, flip=0.0, erase=0.0), images)


def test_the_second_view_shows_one_channel_and_the_first_all(images):
    first, second = two_views(images, generator(), erase=0.0, jitter=0.3)
    torch.testing.assert_close(second, second[:, :1].expand_as(second))
    assert not torch.allclose(first, first[:, :1].expand_as(first))


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
    with pytest.raises(ValueError, match="pad must be a whole number of at least 0, got -1"):
        random_crop(images, generator(), pad=-1)
    with pytest.raises(TypeError, match=r"torch\.from_numpy converts an array"):
        random_crop(images.numpy(), generator())


def test_all_public_functions_are_tested():
    tested = {function.__name__ for function in SINGLE} | {two_views.__name__}
    assert set(module.__all__) == tested
