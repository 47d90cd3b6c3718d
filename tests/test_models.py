import re

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import cross_entropy, normalize

from mmmlib.reference.data import hubble_windows, load
from mmmlib.reference.models import Embedding, TwoStreamCNN, gem, gradient_features


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_gem_of_one_to_four():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2)
    assert gem(x, 3).item() == pytest.approx(2.924018, abs=1e-6)


def test_gem_is_the_mean_at_one_and_nears_the_maximum():
    x = 1 + torch.rand(3, 5, 4, 6)
    torch.testing.assert_close(gem(x, 1.0), x.mean(dim=(2, 3)))
    torch.testing.assert_close(
        gem(x.double(), 400.0), x.double().amax(dim=(2, 3)), atol=0.02, rtol=0
    )


def test_gem_has_a_right_and_finite_gradient():
    x = torch.rand(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gem, (x,))
    zeros = torch.zeros(1, 2, 3, 3, requires_grad=True)
    gem(zeros).sum().backward()
    assert torch.isfinite(zeros.grad).all()
    assert gem(zeros.half()).dtype == torch.float32


@pytest.fixture
def model():
    return TwoStreamCNN(3, 1, dim=32, generator=generator())


@pytest.fixture
def pair():
    return torch.rand(6, 3, 32, 24), torch.rand(4, 1, 32, 24)


def test_training_gives_the_neck_and_evaluation_unit_rows(model, pair):
    embedding = model(*pair)
    assert isinstance(embedding, Embedding)
    assert embedding.features.shape == embedding.pooled.shape == (10, 32)
    torch.testing.assert_close(embedding.features.mean(0), torch.zeros(32), atol=1e-5, rtol=0)
    evaluated = model.eval()(*pair)
    torch.testing.assert_close(evaluated.features.norm(dim=1), torch.ones(10))
    torch.testing.assert_close(evaluated.features, normalize(model.neck(evaluated.pooled), dim=1))


def test_visible_rows_come_first_and_either_modality_goes_alone(model, pair):
    both = model.eval()(*pair).features
    torch.testing.assert_close(both[:6], model(visible=pair[0]).features)
    torch.testing.assert_close(both[6:], model(infrared=pair[1]).features)


def test_the_stems_start_alike_but_are_two_and_the_trunk_is_shared():
    images = torch.rand(5, 1, 24, 24)
    model = TwoStreamCNN(1, 1, generator=generator()).eval()
    embedding = model(images, images).pooled
    torch.testing.assert_close(embedding[:5], embedding[5:])
    with torch.no_grad():
        model.infrared_stem[1][0].weight.neg_()
    changed = model(images, images).pooled
    assert torch.equal(changed[:5], embedding[:5])
    assert not torch.allclose(changed[5:], embedding[5:])


def test_stems_of_unequal_channels_start_from_weights_of_their_own():
    model = TwoStreamCNN(3, 1, generator=generator()).eval()
    assert model.visible_stem[1][0].weight.shape == (16, 3, 3, 3)
    assert model.infrared_stem[1][0].weight.shape == (16, 1, 3, 3)


def test_the_scale_of_the_input_does_not_matter_in_training():
    model = TwoStreamCNN(1, 1, generator=generator())
    images = torch.rand(8, 1, 24, 24)
    torch.testing.assert_close(
        model(images).features, model(40 * images + 3).features, atol=2e-3, rtol=0
    )


def test_the_generator_decides_the_weights(pair):
    first, again, other = (TwoStreamCNN(3, 1, generator=generator(seed)) for seed in (0, 0, 1))
    features = [model.eval()(*pair).features for model in (first, again, other)]
    assert torch.equal(features[0], features[1])
    assert not torch.allclose(features[0], features[2])


def test_the_bias_of_the_neck_stays_zero_and_everything_else_learns(model, pair):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.named_parameters()}
    (model(*pair).features * torch.rand(10, 32)).sum().backward()
    optimizer.step()
    same = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert same == ["neck.bias"]
    assert not model.neck.bias.any()


def test_the_network_learns_to_tell_training_identities_apart():
    data = load("synthetic", instances=4)
    images = [side.pixels.float() / 255 for side in (data.visible, data.infrared)]
    identities = torch.cat([data.visible.identities, data.infrared.identities])
    labels = identities.unique(return_inverse=True)[1]
    model = TwoStreamCNN(1, 1, generator=generator())
    classes = torch.nn.Parameter(torch.randn(24, 128))
    optimizer = torch.optim.Adam([*model.parameters(), classes], lr=2e-3)
    losses = []
    for _ in range(25):
        logits = normalize(model(*images).features, dim=1) @ normalize(classes, dim=1).T / 0.1
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_gradient_features_ignore_mirrors_and_exchanged_bright_and_dark():
    pixels = torch.randint(256, (7, 1, 48, 48), dtype=torch.uint8)
    features = gradient_features(pixels)
    assert features.dtype == torch.float32
    torch.testing.assert_close(gradient_features(pixels.flip(-1)), features)
    torch.testing.assert_close(gradient_features(255 - pixels), features)
    torch.testing.assert_close(gradient_features(pixels.double() / 255), features)


def test_a_block_of_gradient_features_has_norm_one_before_the_mirror():
    ramp = torch.linspace(0, 1, 24).expand(1, 1, 24, 24)  # its own mirror, but for the sign
    block = gradient_features(ramp, cells=2, bins=4)[0]
    expected = torch.zeros(4, 4)
    expected[:, 0] = 0.5  # four cells, all in the direction across
    torch.testing.assert_close(block, expected.flatten(), atol=1e-2, rtol=0)


def test_a_gradient_between_two_directions_is_shared_by_both():
    diagonal = torch.arange(16.0)[:, None] + torch.arange(16.0)
    cell = gradient_features(diagonal.view(1, 1, 16, 16) / 32, cells=2, bins=2)[0].view(4, 2)
    torch.testing.assert_close(cell[:, 0], cell[:, 1])


def test_flat_images_and_no_images_have_finite_features():
    assert not gradient_features(torch.full((2, 3, 20, 20), 7, dtype=torch.uint8)).any()
    assert gradient_features(torch.zeros(0, 1, 48, 48)).shape == (0, 324)


def test_the_longer_edge_has_more_cells_and_rows_do_not_depend_on_the_batch():
    pixels = torch.rand(300, 3, 32, 16)
    features = gradient_features(pixels)
    assert features.shape == (300, 7 * 3 * 4 * 9)
    torch.testing.assert_close(features[280:281], gradient_features(pixels[280:281]))


def centred(images):
    features = gradient_features(images.pixels)
    return normalize(features - features.mean(dim=0), dim=1)


def means(features, identities, k):
    """``k`` k-means centres of each identity."""
    from sklearn.cluster import KMeans

    rows = [features[identities == identity].numpy() for identity in identities.unique()]
    fits = [KMeans(k, n_init=4, random_state=0).fit(row).cluster_centers_ for row in rows]
    return torch.from_numpy(np.stack(fits))


def test_several_memories_match_the_windows_of_the_sky_far_better_than_one():
    pytest.importorskip("skimage")
    visible, infrared = hubble_windows(instances=8, seed=0)
    sides = [(centred(images), images.identities) for images in (visible, infrared)]
    best = (sides[1][0] @ sides[0][0].T).argmax(dim=1)
    assert (visible.identities[best] == infrared.identities).float().mean() > 0.35

    right = {}
    for k in (1, 4):
        first, second = (means(*side, k) for side in sides)
        distance = torch.cdist(first.flatten(0, 1), second.flatten(0, 1)).view(340, k, 340, k)
        cost = distance.amin(dim=3).sum(dim=1) + distance.amin(dim=1).sum(dim=2)
        row, column = linear_sum_assignment(cost.numpy())
        right[k] = (row == column).mean()
    assert right[4] >= 0.88
    assert right[4] >= right[1] + 0.18


def test_errors_name_the_argument(model):
    with pytest.raises(ValueError, match="visible or infrared must hold images, got None for both"):
        model()
    with pytest.raises(ValueError, match="visible_channels must be a whole number of at least 1"):
        TwoStreamCNN(0)
    with pytest.raises(ValueError, match=re.escape("p must be in (0, inf), got 0")):
        gem(torch.rand(1, 1, 2, 2), 0)
    with pytest.raises(
        ValueError,
        match=re.escape(
            "pixels must be (n, channels, height, width) of at least 4 pixels each way, "
            "got shape (1, 1, 3, 9)"
        ),
    ):
        gradient_features(torch.rand(1, 1, 3, 9))
    with pytest.raises(TypeError, match=r"pixels must be a torch\.Tensor, got numpy\.ndarray"):
        gradient_features(np.zeros((1, 1, 8, 8)))
