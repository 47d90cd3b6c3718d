import hashlib
import os
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import cross_entropy, normalize

from mmmlib.reference.data import hubble_windows, load
from mmmlib.reference.models import (
    Embedding,
    TwoStreamCNN,
    TwoStreamResNet50,
    extract_features,
    gem,
    gradient_features,
    load_resnet50,
    load_weights,
    read_weights,
)


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


def test_features_are_the_mean_over_image_and_mirror_as_unit_rows(model, pair):
    pixels = (255 * pair[0]).byte()
    images = pixels.float() / 255
    model.eval()
    with torch.no_grad():
        plain, mirrored = (model(visible=view).features for view in (images, images.flip(-1)))
    model.train()
    features = extract_features(model, pixels, batch_size=4)
    torch.testing.assert_close(features, normalize(plain + mirrored, dim=1))
    torch.testing.assert_close(extract_features(model, images.flip(-1)), features)
    torch.testing.assert_close(extract_features(model, images, flip=False), plain)
    assert model.training
    assert not features.requires_grad


def test_features_of_infrared_images_and_of_none(model, pair):
    expected = normalize(model.eval()(infrared=pair[1]).features, dim=1)
    features = extract_features(model, pair[1], infrared=True, flip=False)
    torch.testing.assert_close(features, expected.detach())
    assert not model.training
    assert extract_features(model, pair[1][:0], infrared=True).shape == (0, 32)


# --- the ResNet-50 ---

LAYERS = ("layer3", "layer4")
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torchvision_shapes():
    """The names and shapes of torchvision's ResNet-50, in its order."""
    found = OrderedDict()

    def convolution(name, after, before, size):
        found[f"{name}.weight"] = (after, before, size, size)

    def batch_norm(name, channels):
        for part in BATCH_NORM:
            found[f"{name}.{part}"] = () if part == "num_batches_tracked" else (channels,)

    convolution("conv1", 64, 3, 7)
    batch_norm("bn1", 64)
    before = 64
    for layer, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**layer
        for block in range(blocks):
            name = f"layer{layer + 1}.{block}"
            sides = ((width, before, 1), (width, width, 3), (4 * width, width, 1))
            for i, side in enumerate(sides):
                convolution(f"{name}.conv{i + 1}", *side)
                batch_norm(f"{name}.bn{i + 1}", side[0])
            if block == 0:
                convolution(f"{name}.downsample.0", 4 * width, before, 1)
                batch_norm(f"{name}.downsample.1", 4 * width)
            before = 4 * width
    found["fc.weight"], found["fc.bias"] = (1000, 2048), (1000,)
    return found


def weights_of(shapes, first=0):
    """Weights of these shapes, each filled with a number of its own; they take no room on disk."""
    return OrderedDict(
        (name, torch.tensor(first + i, dtype=dtype_of(name)).expand(shape))
        for i, (name, shape) in enumerate(shapes.items())
    )


def dtype_of(name):
    return torch.int64 if name.endswith("num_batches_tracked") else torch.float32


@pytest.fixture(scope="module")
def resnet():
    return TwoStreamResNet50(generator=generator()).eval()


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(weights_of(torchvision_shapes()), path)
    return path


def test_one_stream_has_the_names_shapes_and_order_of_torchvision(resnet):
    stream = {
        name.removeprefix("visible_stem."): tuple(value.shape)
        for name, value in resnet.state_dict().items()
        if name.startswith(("visible_stem.", "layer"))
    }
    expected = torchvision_shapes()
    lines = "\n".join(f"{name} {shape}" for name, shape in expected.items())
    # of torchvision.models.resnet50().state_dict(), torchvision 0.28.0
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == "d7e4f8bb0a536344"
    assert list(stream.items()) == list(expected.items())[:-2]


def test_one_stream_has_the_parameters_of_a_resnet_50_without_classifier(resnet):
    counts = {name: value.numel() for name, value in resnet.named_parameters()}
    other = sum(count for name, count in counts.items() if name.startswith(("infrared", "neck")))
    assert sum(counts.values()) - other == 23_508_032
    assert other == 64 * 3 * 7 * 7 + 2 * 64 + 2 * 2048


@torch.no_grad()
def test_the_last_layer_keeps_the_size_of_its_map(resnet):
    sizes = {}

    def note(name):
        return lambda _module, _given, out: sizes.update({name: tuple(out.shape)})

    hooks = [resnet.get_submodule(name).register_forward_hook(note(name)) for name in LAYERS]
    embedding = resnet(torch.rand(2, 3, 64, 32), torch.rand(1, 1, 64, 32))
    for hook in hooks:
        hook.remove()
    assert sizes == {"layer3": (3, 1024, 4, 2), "layer4": (3, 2048, 4, 2)}  # else 2 x 1
    assert embedding.pooled.shape == embedding.features.shape == (3, 2048)
    torch.testing.assert_close(embedding.features.norm(dim=1), torch.ones(3))


@torch.no_grad()
def test_the_streams_of_a_new_network_give_the_same_and_normalise_inside(resnet):
    images = torch.rand(2, 3, 64, 32)
    embedding = resnet(images, images).pooled
    torch.testing.assert_close(embedding[:2], embedding[2:])
    torch.testing.assert_close(resnet(visible=images).pooled, embedding[:2])
    gray = images[:, :1]
    torch.testing.assert_close(
        resnet(infrared=gray)[0], resnet(infrared=gray.expand(2, 3, -1, -1))[0]
    )
    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1).expand(1, 3, 64, 32)
    assert not resnet(visible=mean).pooled.gt(1e-3).any()  # ImageNet's mean becomes 0


@torch.no_grad()
def test_channels_last_and_autocast_change_next_to_nothing(resnet):
    images = torch.rand(2, 3, 64, 32)
    expected = resnet(images).features
    with torch.autocast("cpu", torch.bfloat16):
        low = resnet(images)
    assert low.pooled.dtype == torch.float32
    assert (low.features * expected).sum(dim=1).min() > 0.99
    last = TwoStreamResNet50(generator=generator()).eval().to(memory_format=torch.channels_last)
    assert last.layer4[2].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images).features, expected, atol=1e-5, rtol=1e-4)


def test_all_of_the_resnet_learns_but_the_bias_of_the_neck():
    model = TwoStreamResNet50(non_local="paper", generator=generator())
    embedding = model(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(embedding.features.mean(dim=0), torch.zeros(2048), atol=1e-5, rtol=0)
    (embedding.features * torch.rand(4, 2048)).sum().backward()
    still = [name for name, value in model.named_parameters() if value.grad is None]
    assert still == ["neck.bias"]
    assert all(
        torch.isfinite(value.grad).all() for value in model.parameters() if value.requires_grad
    )


def test_the_generator_decides_the_weights_of_the_resnet(resnet):
    again, other = (TwoStreamResNet50(generator=generator(seed)) for seed in (0, 1))
    for name, value in resnet.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(resnet.layer1[0].conv1.weight, other.layer1[0].conv1.weight)


@pytest.mark.parametrize(("form", "inside"), [("paper", 256), ("code", 1)])
def test_a_non_local_block_starts_as_the_identity_and_looks_at_all_positions(form, inside):
    block = TwoStreamResNet50(non_local=form, generator=generator()).non_local["layer2"][0].eval()
    x = torch.rand(2, 512, 3, 2)
    assert torch.equal(block(x), x)
    assert block.theta.out_channels == inside
    torch.nn.init.uniform_(block.out[1].weight)
    torch.nn.init.uniform_(block.out[0].bias)
    theta, phi, g = (
        part(x).flatten(2).transpose(1, 2) for part in (block.theta, block.phi, block.g)
    )
    likeness = theta @ phi.transpose(1, 2) / 6  # (n, positions, positions)
    looked = (likeness @ g / inside).transpose(1, 2).reshape(2, inside, 3, 2)
    torch.testing.assert_close(block(x), x + block.out(looked))
    assert block(x[:0]).shape == (0, 512, 3, 2)


def test_non_local_blocks_follow_the_last_blocks_of_two_layers_and_change_nothing_at_first(resnet):
    model = TwoStreamResNet50(non_local="code").eval()
    assert {name: len(blocks) for name, blocks in model.non_local.items()} == {
        "layer2": 2, "layer3": 3,
    }  # fmt: skip
    model.load_state_dict(resnet.state_dict(), strict=False)
    images, order = torch.rand(1, 3, 64, 32), []
    names = dict(model.named_modules())
    watched = [name for name in names if re.fullmatch(r"(non_local\.)?layer[23]\.\d", name)]
    for name in watched:
        names[name].register_forward_hook(lambda *_, name=name: order.append(name))
    assert torch.equal(model(images).features, resnet(images).features)
    assert " ".join(order).replace("non_local.layer", "after") == (
        "layer2.0 layer2.1 layer2.2 after2.0 layer2.3 after2.1 layer3.0 layer3.1 layer3.2 "
        "layer3.3 after3.0 layer3.4 after3.1 layer3.5 after3.2"
    )


# --- files of weights ---


def filled_with(model):
    return {name: value.flatten()[0].item() for name, value in model.state_dict().items()}


def stem_of(name):
    return name.partition(".")[0] in ("conv1", "bn1")


def test_both_stems_start_from_the_file_of_torchvision(torchvision_file):
    model = TwoStreamResNet50(non_local="paper")
    kept = {
        name: value.clone()
        for name, value in model.state_dict().items()
        if name.startswith(("neck.", "non_local."))
    }
    load_weights(model, torchvision_file)
    found = filled_with(model)
    for i, name in enumerate(torchvision_shapes()):
        if stem_of(name):
            assert found[f"visible_stem.{name}"] == found[f"infrared_stem.{name}"] == i
        elif not name.startswith("fc."):
            assert found[name] == i
    for name, value in kept.items():
        assert torch.equal(model.state_dict()[name], value)


def test_an_old_file_without_counters_and_without_a_zip_is_read(tmp_path):
    shapes = torchvision_shapes()
    weights = {name: value for name, value in weights_of(shapes).items() if "batches" not in name}
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = TwoStreamResNet50()
    load_weights(model, str(tmp_path / "old.pth"))
    assert filled_with(model)["layer4.2.conv3.weight"] == list(shapes).index(
        "layer4.2.conv3.weight"
    )
    assert model.layer4[2].bn3.num_batches_tracked == 0


def published(non_local=False):
    """The names of the published two-stream networks: three whole ones, a part of each in use."""
    shapes = {}
    for prefix in ("thermal_module.thermal.", "visible_module.visible.", "base_resnet.base."):
        shapes |= {prefix + name: shape for name, shape in torchvision_shapes().items()}
    for layer, blocks, channels in ((2, 2, 512), (3, 3, 1024)) if non_local else ():
        for block in range(blocks):
            name = f"NL_{layer}.{block}"
            shapes |= {
                f"{name}.g.0.weight": (1, channels, 1, 1), f"{name}.g.0.bias": (1,),
                f"{name}.W.0.weight": (channels, 1, 1, 1), f"{name}.W.0.bias": (channels,),
                **{f"{name}.W.1.{part}": (channels,) for part in BATCH_NORM[:-1]},
                f"{name}.W.1.num_batches_tracked": (),
                f"{name}.theta.weight": (1, channels, 1, 1), f"{name}.theta.bias": (1,),
                f"{name}.phi.weight": (1, channels, 1, 1), f"{name}.phi.bias": (1,),
            }  # fmt: skip
    shapes |= {f"bottleneck.{part}": (2048,) for part in BATCH_NORM[:-1]}
    return shapes | {"bottleneck.num_batches_tracked": (), "classifier.weight": (395, 2048)}


def ours(name):
    """The published name of one of ours."""
    stems = {"visible_stem": "visible_module.visible", "infrared_stem": "thermal_module.thermal"}
    head, _, tail = name.partition(".")
    if head in stems:
        return f"{stems[head]}.{tail}"
    if head == "neck":
        return f"bottleneck.{tail}"
    if head != "non_local":
        return f"base_resnet.base.{name}"
    layer, block, part, rest = tail.split(".", 3)
    part = {"g": "g.0", "out": "W"}.get(part, part)
    return f"NL_{layer[-1]}.{block}.{part}.{rest}"


def wrapped(kind, weights):
    """As the programs of ADCA and PGM, of MMM and of MBCCM save them."""
    parallel = {f"module.{name}": value for name, value in weights.items()}
    if kind == "net":
        return {
            "net": weights,
            "optimizer": {"state": {}},
            "cmc": np.arange(3.0),
            "mAP": np.float64(0.5),
        }
    if kind == "discriminator":
        extra = {"module.disnet.ad_layer1.weight": torch.zeros(1024, 2048)}
        return {"state_dict": parallel | extra, "epoch": 3, "best_mAP": 0}
    return {"state_dict": parallel, "epoch": 49, "best_mAP": np.float64(0.5)}


@pytest.mark.parametrize("kind", ["state_dict", "net", "discriminator"])
@pytest.mark.parametrize("non_local", [False, True])
def test_the_checkpoints_of_the_published_programs_are_read(tmp_path, kind, non_local):
    shapes = published(non_local)
    path = tmp_path / "model_best.pth.tar"
    torch.save(wrapped(kind, weights_of(shapes, first=1)), path)
    model = load_resnet50(path)
    assert bool(model.non_local) == non_local
    number = {name: i for i, name in enumerate(shapes, start=1)}
    assert filled_with(model) == {name: number[ours(name)] for name in model.state_dict()}


def test_numbers_of_an_older_numpy_are_let_by_and_never_made(tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    state = wrapped("net", weights_of({"bottleneck.weight": (2048,)}))
    torch.save(state, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    assert new in content or old in content
    for module in (new, old):
        path.write_bytes(content.replace(new, old).replace(old, module))
        assert list(read_weights(path)) == ["neck.weight"]


@pytest.mark.parametrize("form", [None, "paper", "code"])
def test_a_checkpoint_of_ours_makes_the_network_again(tmp_path, form):
    model = TwoStreamResNet50(non_local=form, generator=generator(3))
    torch.save({"model": model.state_dict(), "epoch": 7}, tmp_path / "checkpoint.pth.tar")
    again = load_resnet50(tmp_path / "checkpoint.pth.tar").state_dict()
    assert list(again) == list(model.state_dict())
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_the_small_network_is_loaded_too(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "small.pth")
    other = TwoStreamCNN(3, 1, dim=32)
    load_weights(other, tmp_path / "small.pth")
    assert torch.equal(other.trunk[3][0].weight, model.trunk[3][0].weight)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_errors_refuse_a_file_that_would_run_code(tmp_path):
    path, trace = tmp_path / "model.pth", tmp_path / "trace"
    for zipped in (True, False):
        torch.save(
            {"state_dict": {"conv1.weight": torch.zeros(1)}, "epoch": Malicious(trace)},
            path, _use_new_zipfile_serialization=zipped,
        )  # fmt: skip
        said = (
            f"path must hold tensors and plain values only, got {str(path)!r}, "
            f"which asks for {os.system.__module__}.system and was not loaded"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            read_weights(path)
    assert not trace.exists()
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(
        ValueError, match=r"which asks for torch\.nn\.modules\.linear\.Linear and was"
    ):
        read_weights(path)


def test_errors_of_files_that_hold_no_weights(tmp_path):
    missing = tmp_path / "missing.pth"
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"path must be a file, got {str(missing)!r}")
    ):
        read_weights(missing)
    path = tmp_path / "file.pth"
    torch.save(weights_of({"conv1.weight": (9,)}), path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[2:]):
        path.write_bytes(content)
        said = f"path must be a whole file written by torch.save, got {str(path)!r}"
        with pytest.raises(ValueError, match=re.escape(said)):
            read_weights(path)
    for content in ([torch.zeros(1)], {}, {"state_dict": {"epoch": 3}}, {3: torch.zeros(1)}):
        torch.save(content, path)
        said = f"path must hold named weights, got none in {str(path)!r}"
        with pytest.raises(ValueError, match=re.escape(said)):
            read_weights(path)


def test_errors_name_the_weights_that_do_not_fit_and_leave_the_network_alone(tmp_path, resnet):
    path, shapes = tmp_path / "weights.pth", torchvision_shapes()
    before = {name: value.clone() for name, value in resnet.state_dict().items()}

    def said_of(shapes):
        torch.save(weights_of(shapes), path)
        with pytest.raises(ValueError, match="path must hold") as error:
            load_weights(resnet, path)
        return str(error.value).removeprefix(
            f"path must hold the weights of a TwoStreamResNet50, got {str(path)!r} "
        )

    lacking = {
        name: shape for name, shape in shapes.items() if not name.startswith("layer4.2.conv")
    }
    assert said_of(lacking) == (
        "without layer4.2.conv1.weight, layer4.2.conv2.weight, layer4.2.conv3.weight"
    )
    deeper = shapes | {f"layer3.{i}.conv1.weight": (1,) for i in range(6, 23)}
    assert said_of(deeper) == (
        "with the unknown layer3.6.conv1.weight, layer3.7.conv1.weight, layer3.8.conv1.weight "
        "and 14 more"
    )
    other = {"layer1.0.conv1.weight": (64, 64, 3, 3), "head.weight": (2,)}
    assert said_of(shapes | other) == (
        "with the unknown head.weight and with another shape of "
        "layer1.0.conv1.weight (64, 64, 3, 3) for (64, 64, 1, 1)"
    )
    own = {name: tuple(value.shape) for name, value in resnet.state_dict().items()}
    assert said_of(own | {"neck.weight": (2048,)} | published_rest()) == (
        "with the unknown non_local.layer2.0.theta.bias"
    )
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())


def published_rest():
    return {"NL_2.0.theta.bias": (1,)}


def test_errors_of_the_resnet_name_the_argument(resnet):
    with pytest.raises(ValueError, match="visible or infrared must hold images, got None for both"):
        resnet()
    with pytest.raises(ValueError, match="infrared must have 1 or 3 channels, got 2"):
        resnet(infrared=torch.rand(1, 2, 64, 32))
    with pytest.raises(ValueError, match="non_local must be 'paper' or 'code', got 'on'"):
        TwoStreamResNet50(non_local="on")
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        extract_features(resnet, torch.rand(1, 3, 64, 32), batch_size=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
def test_a_gpu_gives_the_same_features(resnet):
    pixels = torch.randint(256, (3, 3, 64, 32), dtype=torch.uint8)
    expected = extract_features(resnet, pixels)
    there = extract_features(TwoStreamResNet50(generator=generator()).cuda(), pixels)
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), expected, atol=1e-3, rtol=1e-3)


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


@pytest.mark.parametrize("model", [None, "resnet50", TwoStreamCNN])
def test_errors_name_a_model_that_is_no_module(model):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        extract_features(model, torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
