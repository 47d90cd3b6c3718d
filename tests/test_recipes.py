"""The recipes: what each is made of, and what sets them apart while they run."""

import csv
import json
import math
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch

from mmmlib._types import ClusterMatch
from mmmlib.cli import main, settings_from
from mmmlib.matching import match_clusters, multi_memory_match, nearest_match
from mmmlib.memory import ClusterMemory
from mmmlib.reference import data
from mmmlib.reference._presets import DATA_SETS, TABLE, preset_of
from mmmlib.reference.models import TwoStreamResNet50
from mmmlib.reference.recipes import RECIPES, WEIGHTS, Part, Recipe, ablated, one_to_one
from mmmlib.reference.run import PRESETS, Run, Settings
from mmmlib.reference.train import LOSSES, Labels, Step, _loop, _objective, _plan, _steps, train

PUBLISHED = ["baseline", "adca", "pgm", "mmm", "mbccm"]


def run(recipe: str, logs: Path, *more: str) -> tuple[list[dict[str, str]], Path]:
    arguments = ["train", "--recipe", recipe, "--quiet", "--logs-dir", str(logs), *more]
    assert main(arguments) == 0
    (folder,) = logs.iterdir()
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file)), folder


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "mmm"])
def test_every_recipe_runs_and_every_part_of_it(recipe: str, tmp_path: Path) -> None:
    rows, folder = run(recipe, tmp_path, "-d", "synthetic", "--epochs", "4")
    found = {
        key.removeprefix("loss_")
        for row in rows
        for key, value in row.items()
        if key.startswith("loss_") and value
    }
    assert found - {"instance"} == {part.name for part in RECIPES[recipe].parts}
    assert all(0 <= float(row["rank_1"]) <= 1 for row in rows)
    state = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    assert {"visible", "infrared"} <= state["memories"].keys()


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_published_recipes_run_on_real_pixels(recipe: str, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    short = ["--warm-up", "1", "--epochs", "2", "--iters", "1", "-b", "32", "--eval-step", "3"]
    rows, folder = run(recipe, tmp_path, "-d", "hubble", *short)
    assert [bool(row["rank_1"]) for row in rows] == [True, False, False, True]
    assert float(rows[-1]["visible_clusters"]) > 1
    assert json.loads((folder / "card.json").read_text())["data"]["visible"]["images"] == 1496


def test_matches_begin_when_the_recipe_says(tmp_path: Path) -> None:
    rows, _ = run("adca", tmp_path, "-d", "synthetic", "--epochs", "4")
    assert [bool(row["matched"]) for row in rows] == [False, False, False, False, True, True]


def test_pgm_crosses_to_one_memory_an_epoch_in_turn(tmp_path: Path) -> None:
    rows, _ = run("pgm", tmp_path, "-d", "synthetic", "--epochs", "4")
    crossed = [
        tuple(name for name in ("visible", "infrared") if row[f"loss_cross_{name}_nce"])
        for row in rows
    ]
    assert crossed == [(), (), (), (), ("infrared",), ("visible",)]


def test_adca_mixes_the_memory_of_the_partner_into_the_visible_one() -> None:
    memories = {
        "visible": ClusterMemory(torch.eye(3)),
        "infrared": ClusterMemory(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])),
    }
    match = one_to_one(torch.eye(3), torch.eye(3)[[1, 0]])  # 0 to 1, 1 to 0, 2 alone
    _plan.mix_memories(memories, match, 0.1)
    norm = math.hypot(0.1, 0.9)
    wanted = torch.tensor([[0.1, 0.0, 0.9], [0.0, 1.0 * norm, 0.0], [0.0, 0.0, norm]]) / norm
    torch.testing.assert_close(memories["visible"].prototypes, wanted)
    assert torch.equal(memories["infrared"].prototypes, torch.eye(3)[1:])


def test_another_match_in_a_method_is_one_line() -> None:
    vote, memories = RECIPES["adca"], RECIPES["adca+mmm"]
    assert memories.match is multi_memory_match
    changed = {name for name in Recipe._fields if getattr(vote, name) != getattr(memories, name)}
    assert changed == {"match", "match_on", "source"}


def test_the_whitened_recipe_differs_in_its_match_alone() -> None:
    shared, whitened = RECIPES["mmm-shared"], RECIPES["mmm-whitened"]
    changed = {name for name in Recipe._fields if getattr(shared, name) != getattr(whitened, name)}
    assert changed == {"match", "source"}
    assert whitened.match is match_clusters


def step_of(visible: torch.Tensor, infrared: torch.Tensor) -> Step:
    """Two rows of each modality, in clusters 0 and 1, which are partners crosswise."""
    own = torch.tensor([0, 1])
    crossed = torch.tensor([1, 0])
    labels = Labels(own, own, own, crossed, own, own, crossed, crossed)
    memories = {name: ClusterMemory(torch.eye(2), rule="mean") for name in ("visible", "infrared")}
    nothing = visible.new_zeros(2, 2), visible.new_zeros(2, 2)
    return Step(visible, infrared, labels, memories, nothing, (own.float(), own.float()))


def test_the_cross_contrast_reads_the_other_memory_by_the_labels_of_the_partners() -> None:
    step = step_of(torch.eye(2), torch.eye(2).flip(0))
    assert _objective.cross_visible_nce(step) < 1e-6  # infrared row 0 is visible cluster 1
    assert _objective.cross_infrared_nce(step) > 10
    assert _objective.infrared_nce(step) > 10


def test_a_crossed_memory_takes_the_mean_of_both_modalities() -> None:
    step = step_of(torch.eye(2), torch.tensor([[0.6, 0.8], [1.0, 0.0]]))
    _objective.write_memories(step, frozenset({"visible"}))
    # Visible cluster 0: visible row 0 and infrared row 1, which are equal; cluster 1: the others.
    memory = step.memories["visible"].prototypes
    torch.testing.assert_close(memory[0], torch.tensor([1.0, 0.0]))
    middle = torch.tensor([0.3, 0.9])
    wanted = 0.1 * torch.tensor([0.0, 1.0]) + 0.9 * middle / middle.norm()
    torch.testing.assert_close(memory[1], wanted / wanted.norm())
    alone = 0.1 * torch.tensor([1.0, 0.0]) + 0.9 * torch.tensor([0.6, 0.8])
    torch.testing.assert_close(step.memories["infrared"].prototypes[0], alone / alone.norm())


def test_two_views_double_the_visible_rows_only() -> None:
    pixels = torch.randint(256, (3, 3, 24, 12), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    settings = Settings(pad=2, contrast=0.0)
    two = _steps.visible_views(pixels, RECIPES["adca"], settings, generator)
    assert two.shape == (6, 3, 24, 12)
    assert (two[3:] - two[3:].mean(dim=1, keepdim=True)).abs().max() < 1e-6  # one channel
    assert (two[:3] - two[:3].mean(dim=1, keepdim=True)).abs().max() > 0.1
    assert len(_steps.infrared_views(pixels, RECIPES["adca"], settings, generator, True)) == 3
    one = _steps.visible_views(pixels, RECIPES["adca"], Settings(views=1, pad=2), generator)
    assert len(one) == 3


def test_infrared_images_turn_gray_unless_their_channels_are_bands() -> None:
    pixels = torch.tensor([0, 100, 250], dtype=torch.uint8).view(1, 3, 1, 1).expand(64, 3, 8, 8)
    settings = Settings(pad=0, contrast=0.0)
    found = [
        _steps.infrared_views(
            pixels, RECIPES["pgm"], settings, torch.Generator().manual_seed(0), matching, bands
        )
        for matching, bands in ((True, False), (True, True), (False, True))
    ]
    assert (found[0].std(dim=1).flatten(1).amax(dim=1) < 1e-6).float().mean() > 0.5
    for kept in found[1:]:
        torch.testing.assert_close(kept, pixels / 255)


def rates(recipe: Recipe, settings: Settings) -> list[float]:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    found = []
    for epoch in range(settings.epochs):
        _loop.set_rate(optimizer, recipe, settings, epoch)
        found.append(round(math.log10(optimizer.param_groups[0]["lr"] / settings.lr)))
    return found


def test_the_rate_falls_by_steps_or_at_milestones_and_rises_again_in_a_second_stage() -> None:
    settings = Settings(epochs=8, step_size=3)
    assert rates(RECIPES["baseline"], settings) == [0, 0, 0, -1, -1, -1, -2, -2]
    assert rates(RECIPES["adca"], settings) == [0, 0, 0, -1, 0, 0, 0, -1]
    milestones = Settings(epochs=8, milestones="1, 5")
    assert rates(RECIPES["mbccm"], milestones) == [0, -1, -1, -1, -1, -2, -2, -2]


def test_a_second_stage_forgets_what_the_optimiser_knew() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    weight.square().sum().backward()
    optimizer.step()
    settings = Settings(epochs=4)
    _loop.set_rate(optimizer, RECIPES["pgm"], settings, 1)
    assert optimizer.state
    _loop.set_rate(optimizer, RECIPES["pgm"], settings, 2)
    assert not optimizer.state


def test_the_settings_of_an_ablation_change_the_weights_of_their_parts() -> None:
    for flag, losses in WEIGHTS.items():
        recipe = next(
            recipe for recipe in RECIPES.values() if losses[0] in {p.loss for p in recipe.parts}
        )
        changed = ablated(recipe, Settings(**{flag: 0.0}))
        assert {part.loss for part in changed.parts if part.weight == 0} == set(losses)
        assert len(changed.parts) == len(recipe.parts)
    alone = ablated(RECIPES["mmm"], Settings(no_mmlm=True))
    assert (alone.match, alone.match_on) == (one_to_one, "prototypes")
    assert ablated(RECIPES["mmm"], Settings()) == RECIPES["mmm"]


@pytest.mark.parametrize(
    ("flags", "left_out"),
    [
        (["--lambda-intra", "0"], "alignment_intra"),
        (["--lambda-inter", "0"], "alignment_inter"),
        (["--no-mmlm", "--num-memories", "2"], None),
    ],
)
def test_the_ablations_of_mmm_run(flags: list[str], left_out: str | None, tmp_path: Path) -> None:
    rows, _ = run("mmm", tmp_path, "-d", "synthetic", *flags)
    parts = {part.name for part in RECIPES["mmm"].parts} - {left_out}
    assert {key for key in rows[-1] if key.startswith("loss_") and rows[-1][key]} == {
        f"loss_{name}" for name in parts
    }


def test_every_number_of_a_preset_is_a_setting_with_a_source() -> None:
    names = {item.name for item in fields(Settings)}
    for row in TABLE:
        assert row.values.keys() <= names
        assert row.source
        assert row.dataset in DATA_SETS
        assert row.recipe is None or row.recipe in RECIPES
    assert PRESETS.keys() == data.DATA_SETS.keys()
    for dataset in DATA_SETS:
        for recipe in RECIPES:
            Settings(dataset=dataset, recipe=recipe, **preset_of(dataset, recipe))


def test_a_recipe_on_a_data_set_may_have_numbers_of_its_own() -> None:
    settings = settings_from({"dataset": "regdb", "recipe": "pgm"})
    assert (settings.eps, settings.momentum, settings.epochs) == (0.3, 0.2, 60)
    settings = settings_from({"dataset": "sysu", "recipe": "mbccm", "epochs": 3})
    assert (settings.iters, settings.drops(), settings.epochs) == (300, (20, 50, 70), 3)
    assert settings_from({"dataset": "sysu", "recipe": "adca"}).momentum == 0.1


def torchvision_file(path: Path) -> TwoStreamResNet50:
    """A network, and the part of it that torchvision's file would hold, by its names."""
    model = TwoStreamResNet50(generator=torch.Generator().manual_seed(5))
    weights = {
        name.removeprefix("visible_stem."): value
        for name, value in model.state_dict().items()
        if not name.startswith(("infrared_stem.", "neck."))
    }
    torch.save({**weights, "fc.weight": torch.zeros(3, 2048), "fc.bias": torch.zeros(3)}, path)
    return model


def test_a_resnet_starts_from_a_file_of_weights_without_a_warm_up(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.pth"
    model = torchvision_file(path)
    settings = settings_from({"dataset": "sysu", "pretrained": str(path)})
    assert (settings.arch, settings.warm_up) == ("resnet50", 0)
    made = _loop.make_model(data.load("synthetic"), settings)
    assert torch.equal(made.infrared_stem.conv1.weight, model.visible_stem.conv1.weight)
    assert torch.equal(made.layer4[2].conv3.weight, model.layer4[2].conv3.weight)

    flags = ["-d", "synthetic", "-a", "resnet50", "--pretrained", str(path), "--epochs", "1",
             "--iters", "1", "-b", "8", "--num-instances", "2"]  # fmt: skip
    rows, folder = run("oracle", tmp_path / "runs", *flags)
    assert [row["stage"] for row in rows] == ["random", "clusters"]
    state = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    assert state["model"]["neck.weight"].shape == (2048,)
    assert main(["evaluate", str(folder)]) == 0


def test_bfloat16_trains_to_other_numbers(tmp_path: Path) -> None:
    flags = ["-d", "synthetic", "--epochs", "1"]
    half, folder = run("baseline", tmp_path / "half", *flags, "--amp", "bf16")
    full, _ = run("baseline", tmp_path / "full", *flags)
    assert float(half[-1]["loss_visible_nce"]) != float(full[-1]["loss_visible_nce"])
    assert float(half[-1]["loss_visible_nce"]) == pytest.approx(
        float(full[-1]["loss_visible_nce"]), rel=0.5
    )
    state = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    assert state["memories"]["visible"].dtype == torch.float32


def test_a_step_in_two_parts_has_the_gradient_of_the_whole(tmp_path: Path) -> None:
    loaded = data.load("synthetic", seed=1)
    found = []
    for parts in (1, 2):
        settings = settings_from(
            {"dataset": "synthetic", "recipe": "oracle", "accumulate": parts, "pad": 0,
             "contrast": 0.0, "iters": 1}
        )  # fmt: skip
        trainer = _loop.make_trainer(loaded, settings)
        trainer.model.eval()
        trainer.model.train = lambda mode=True, model=trainer.model: model  # stays so
        recipe = Recipe(parts=RECIPES["oracle"].parts[:2], true_labels=True)
        plan = _plan.make_plan(trainer.model, loaded, recipe, settings, 0)
        quiet = Run(tmp_path, settings, quiet=True)
        one_step(trainer, loaded, recipe, plan, settings, quiet)
        found.append([parameter.grad.clone() for parameter in trainer.model.parameters()
                      if parameter.grad is not None])  # fmt: skip
    for whole, halves in zip(*found, strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-3, atol=1e-5)


def one_step(trainer, loaded, recipe, plan, settings, quiet) -> None:
    """An epoch of one step on images as they are."""
    before = _steps.augment
    _steps.augment = lambda images, *_, **__: images
    try:
        _steps.train_epoch(trainer, loaded, recipe, plan, settings, 0, quiet)
    finally:
        _steps.augment = before


def test_settling_looks_at_a_bounded_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loop, "SETTLING", 2)
    pixels = torch.arange(100)[:, None]
    assert _loop._spread(pixels, 200) is pixels
    assert _loop._spread(pixels, 4)[:, 0].tolist() == [0, 25, 50, 75]
    loaded, seen = data.load("synthetic", seed=1), []
    settings = settings_from({"dataset": "synthetic", "batch_size": 16})
    model = _loop.make_model(loaded, settings)
    model.register_forward_pre_hook(
        lambda _, __, images: seen.append(len(images["visible"])), with_kwargs=True
    )
    _loop.settle(model, loaded, settings)
    assert seen == [8, 8]


def test_the_card_holds_what_a_result_needs(tmp_path: Path) -> None:
    rows, folder = run("baseline", tmp_path, "-d", "synthetic", "--epochs", "1")
    card = json.loads((folder / "card.json").read_text())
    assert card["selected"] == "the last epoch"
    assert card["settings"] == json.loads((folder / "args.json").read_text())
    assert card["data"]["query"] == {"images": 128, "identities": 16, "cameras": [0]}
    assert card["results"][0]["rank_1"] == float(rows[-1]["rank_1"])
    assert card["environment"]["torch"] == torch.__version__
    assert card["command"].startswith("mmmlib train -d synthetic --recipe baseline")


def test_what_the_library_warns_of_is_heard_and_not_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with _plan.listening() as heard:
        nearest_match(torch.eye(2), torch.eye(2), max_cost=-5.0)
    assert len(heard) == 1
    assert heard[0].startswith("no pair of 2 visible and 2 infrared clusters was matched")
    assert capsys.readouterr().err == ""


def test_errors_of_one_giant_cluster_stop_the_training() -> None:
    labels = torch.tensor([0] * 30 + [1] * 5 + [-1] * 5)
    sentence = (
        "--eps must give visible clusters to train on, got 2 clusters of 5/5/30 images "
        "(smallest/median/largest), 12.5% noise with --eps 0.6 (what was seen)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        _plan._check_clusters("visible", labels, Settings(), ["what was seen"])
    _plan._check_clusters("visible", torch.tensor([0] * 4 + [1]), Settings(), [])


def test_errors_of_an_empty_match_stop_the_training() -> None:
    def nobody(visible: torch.Tensor, infrared: torch.Tensor) -> ClusterMatch:
        return nearest_match(visible, infrared, max_cost=-5.0)

    rows, labels = torch.eye(4), torch.arange(4)
    recipe = Recipe(parts=(), match=nobody, match_on="prototypes")
    sentence = "match must pair clusters, got no pair of 4 visible and 4 infrared ones"
    with _plan.listening(), pytest.raises(ValueError, match=f"^{sentence}"):
        _plan.match_clusters(rows, rows, (labels, labels), recipe, Settings(), True)


@pytest.mark.parametrize(
    ("recipe", "changes", "sentence"),
    [
        ("baseline", {"lambda_intra": 0.5},
         "--lambda-intra must be left out without alignment_intra, got 0.5"),
        ("mbccm", {"no_mmlm": True},
         "--no-mmlm must be left out without multi-memory matching, got it"),
    ],
)  # fmt: skip
def test_errors_of_a_flag_that_would_change_nothing(
    recipe: str, changes: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        ablated(RECIPES[recipe], Settings(**changes))


def test_errors_of_a_cross_part_before_any_match(tmp_path: Path) -> None:
    recipe = Recipe(parts=(Part("cross_visible_nce"),))
    settings = settings_from({"dataset": "synthetic"})
    sentence = (
        "recipe must match before cross_visible_nce begins, got a match from 0 on and "
        "cross_visible_nce from 0 on"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        train(data.load("synthetic"), recipe, settings, Run(tmp_path, settings, quiet=True))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"amp": "fp16"}, "--amp must be 'off' or 'bf16' without a GPU, got 'fp16'"),
        ({"arch": "vit"}, "--arch must be 'cnn' or 'resnet50', got 'vit'"),
        ({"milestones": "20;50"}, "--milestones must be whole numbers between commas, got '20;50'"),
        ({"views": 3}, "--views must be in [1, 2], got 3"),
        ({"accumulate": 0}, "--accumulate must be a whole number of at least 1, got 0"),
    ],
)
def test_errors_of_settings_name_the_flag(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Settings(**changes)


def test_errors_of_more_parts_than_clusters() -> None:
    sentence = (
        "--batch-size must give each of 4 parts (--accumulate) a cluster of 8 images "
        "of each modality, got 32 with 20 clusters to draw from"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        _steps._clusters(Settings(batch_size=32, accumulate=4), 20)
    assert _steps._clusters(Settings(batch_size=112, accumulate=2), 20) == 6


def test_the_names_of_the_parts_are_those_of_functions() -> None:
    assert all(name == loss.__name__ for name, loss in LOSSES.items())
    assert asdict(Settings())["recipe"] in RECIPES
