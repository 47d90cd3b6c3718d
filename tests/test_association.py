"""The association study at toy size, and what its generator promises."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks.association import __main__ as association
from benchmarks.association import figures, fit, generator, measure, methods, pixels, report, tried
from mmmlib._types import ClusterMatch


@pytest.mark.parametrize("name", generator.TIERS)
def test_a_tier_has_the_noise_and_the_lonely_identities_it_says(name: str) -> None:
    tier = generator.TIERS[name]
    scene = generator.draw(tier, 5)
    seen = [set(side.identities.tolist()) for side in scene]
    assert len(seen[0] ^ seen[1]) == round(tier.absent * 100)
    for side, noise in zip(scene, tier.noise, strict=True):
        torch.testing.assert_close(side.features.norm(dim=1), torch.ones(len(side.features)))
        assert (side.labels < 0).float().mean().item() == pytest.approx(noise, abs=1e-3)
        assert torch.equal(side.labels.unique(), torch.arange(-1, int(side.labels.max()) + 1))


def test_the_clusters_of_the_log_are_as_many_as_in_the_log() -> None:
    counts = torch.tensor(
        [
            [int(side.labels.max()) + 1 for side in generator.draw(generator.TIERS["log"], seed)]
            for seed in generator.TUNING
        ]
    )
    per_identity = counts.float().mean(dim=0) / 100
    torch.testing.assert_close(
        per_identity, torch.tensor([763 / 395, 437 / 395]), atol=0.05, rtol=0
    )


def test_a_scene_depends_on_its_seed_and_nothing_else() -> None:
    first, again, other = (generator.draw(generator.TIERS["hard"], seed) for seed in (3, 3, 4))
    for side in range(2):
        assert torch.equal(first[side].features, again[side].features)
        assert torch.equal(first[side].labels, again[side].labels)
    assert not torch.equal(first[0].features[:9], other[0].features[:9])


def test_reported_seeds_are_not_those_that_matchers_are_made_on() -> None:
    assert not set(generator.REPORTED) & set(generator.TUNING)
    assert len(generator.REPORTED) == 10


@pytest.mark.parametrize("age", ["early", "late"])
def test_the_committed_fit_says_how_near_the_generator_is(age: str) -> None:
    content = json.loads(generator.FIT.read_text())
    wanted, got = content["quantiles"][age], content["generated"][age]
    apart = [abs(a - b) for kind in wanted for a, b in zip(wanted[kind], got[kind], strict=True)]
    assert sum(apart) / len(apart) == pytest.approx(content["difference"][age], abs=1e-3)
    assert content["difference"][age] < 0.06
    found = generator.shape_at(float(age == "late"))
    assert found == pytest.approx(tuple(content["shapes"][age].values()))


def test_a_fit_finds_features_that_the_generator_made() -> None:
    identities = [torch.arange(15).repeat_interleave(6)] * 2
    true = fit.START._replace(gap=0.9)
    wanted = fit.generated(true, identities)
    apart = fit.generated(fit.START, identities)
    kinds = ("across, another identity", "visible, another identity")
    before = max(abs(apart[kind][3] - wanted[kind][3]) for kind in kinds)
    found = fit.fit(wanted, identities)
    assert fit.difference(fit.generated(found, identities), wanted) < before / 2
    assert found.gap == pytest.approx(0.9, abs=0.2)


def test_quick_runs_every_matcher_and_a_second_run_has_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "association.jsonl"
    arguments = ["--quick", "--json", str(results)]
    association.main([*arguments, "--methods", "nearest", "random", "--cases", "late"])
    assert len(capsys.readouterr().out.splitlines()) == len(methods.CLUSTERERS)
    association.main([*arguments, "--cases", "late"])
    assert "late 0 damaged" in capsys.readouterr().out
    association.main([*arguments, "--cases", "late"])
    assert capsys.readouterr().out == ""

    records = report.load_records(results)
    damaged = records["late", 0, "damaged"]["methods"]
    assert damaged.keys() == methods.MATCHERS.keys()
    f1 = {name: row["components"][measure.SCORES.index("f1")] for name, row in damaged.items()}
    assert f1["true"] == max(f1.values())
    assert f1["random"] < 0.5 * f1["true"]
    assert list(records["late", 0, "joint"]["methods"]) == ["joint"]

    page = report.text(records)
    assert all(question.title in page for question in report.QUESTIONS.values())
    assert f"| nearest | {f1['nearest']:.3f}" in page or "| nearest |" in page
    figures.main(["--json", str(results), "--out", str(tmp_path)])
    assert len(list(tmp_path.glob("association_*.png"))) == len(report.QUESTIONS) + 2


def test_every_way_that_was_tried_runs() -> None:
    found = tried.run((400,), ("late",))
    assert found.keys() == json.loads(tried.TRIED.read_text()).keys()
    f1 = {way: row["late"] for way, row in found.items()}
    assert f1["the same, less the unsure: match_clusters"] > f1["four memories, balanced"]


def test_scenes_of_pixels_know_their_identities(tmp_path: Path) -> None:
    torch.save(
        {
            **{side: torch.rand(20, 8) for side in ("visible", "infrared")},
            **{f"{side}_identities": torch.arange(20) // 2 for side in ("visible", "infrared")},
            **{f"{side}_cameras": torch.zeros(20).long() for side in ("visible", "infrared")},
        },
        tmp_path / "people.pt",
    )
    scene = pixels.trained(tmp_path / "people.pt", 1)
    assert len(scene.visible.features) == len(scene.infrared.features) == 16
    assert len(scene.visible.identities.unique()) == 8
    known = argparse.Namespace(features=tmp_path, landsat=None)
    (tmp_path / "hubble_again.npz").touch()
    again = [name for name in pixels.names(known) if name.endswith("again")]
    assert again == ["hubble, trained again"]
    hubble = pixels.gradients("hubble", 0)
    assert torch.equal(hubble.visible.identities, hubble.infrared.identities)
    assert hubble.visible.features.mean(dim=0).abs().max() < 1e-5


def test_every_image_can_be_a_memory() -> None:
    features, labels = torch.arange(10.0).view(5, 2), torch.tensor([1, 0, -1, 1, 1])
    found = methods.every(features, labels)
    assert found.values.shape == (2, 3, 2)
    assert torch.equal(found.values[1], features[[0, 3, 4]])
    torch.testing.assert_close(found.weights, torch.tensor([[1.0, 0, 0], [1 / 3] * 3]))


def test_the_margin_is_to_the_cheapest_other_pair_of_either_cluster() -> None:
    cost = torch.tensor([[1.0, 3.0, 4.0], [2.0, 7.0, 9.0]])
    expected = torch.tensor([[1.0, -2.0, -3.0], [-1.0, -5.0, -7.0]])
    assert torch.equal(measure.margin(cost), expected)


def test_auroc_counts_pairs_in_order() -> None:
    right = torch.tensor([True, False, True, False])
    assert measure.auroc(torch.tensor([0.9, 0.5, 0.5, 0.1]), right) == 0.875
    assert measure.auroc(torch.rand(3), torch.ones(3).bool()) == 0.5


def test_a_partner_is_right_if_its_cluster_mostly_shows_the_image_s_identity() -> None:
    side = [
        generator.Side(torch.eye(4), torch.tensor(who), torch.zeros(4), torch.tensor(labels))
        for who, labels in (([0, 0, 1, 2], [0, 0, 1, -1]), ([0, 1, 1, 3], [0, 1, 1, 1]))
    ]
    clusters = methods.Clusters(
        generator.Scene(*side), (side[0].labels, side[1].labels), k1=2, seed=0
    )
    matched = torch.eye(2).bool()
    match = ClusterMatch(
        torch.arange(2), torch.arange(2), matched, 1 - matched.double(), matched.double()
    )
    # identities 2 and 3 have no partner to be found; all others have the right one
    assert measure.right_partners(match, clusters) == 1.0
    swapped = match._replace(to_infrared=torch.tensor([1, 0]))
    assert measure.right_partners(swapped, clusters) == 0.5


def test_differences_are_paired_over_seeds() -> None:
    first, second = {0: 0.5, 1: 0.7, 2: 0.9, 3: 0.1}, {0: 0.4, 1: 0.6, 2: 0.7}
    found = report.paired(first, second)
    assert found is not None
    assert found.mean == pytest.approx(0.4 / 3)
    assert found.low == pytest.approx(0.4 / 3 - 4.302653 * 0.057735 / 3**0.5, abs=1e-4)
    assert report.paired(first, {0: 1.0}) is None
