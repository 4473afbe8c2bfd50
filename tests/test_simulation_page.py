"""The page of results: hand-worked tables, verdicts that say no more than the figures, and nothing hidden."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ayni.cli import app
from ayni.errors import DataError
from ayni_coordinator.simulation.evidence import TaskEvidence, by_task
from ayni_coordinator.simulation.experiment import known_methods
from ayni_coordinator.simulation.method_titles import known_titles
from ayni_coordinator.simulation.page import write_page
from ayni_coordinator.simulation.page_claims import (
    Verdict,
    ahead_at_no_more_bytes,
    ahead_of_alone,
    hospitals_lose_nothing,
)
from ayni_coordinator.simulation.page_gaps import gaps
from ayni_coordinator.simulation.results import Row, SiteRole, read_rows, write_rows

DOCS = Path(__file__).parents[1] / "docs"
ALONE = {"hospital-a": 0.95, "clinic-a": 0.8, "clinic-b": 0.7}


def row(method: str, site: str, auc: float, *, seed: int = 0, task: str = "pneumonia", num_bytes: int = 1000) -> Row:
    role: SiteRole = "hospital" if site.startswith("hospital") else "clinic" if site.startswith("clinic") else "unseen"
    return Row(
        task=task, method=method, seed=seed, site=site, role=role, num_train=90, metrics={"auc": auc},
        bytes_up=num_bytes, bytes_down=num_bytes, seconds=5.0, rounds=10,
    )  # fmt: skip


def runs(method: str, gain: float = 0.0, *, large: float = 0.0, num_seeds: int = 3, num_bytes: int = 1000) -> list[Row]:
    """Every site at every seed: what it scores alone and so much more."""
    return [
        row(method, site, auc + (large if site == "hospital-a" else gain), seed=seed, num_bytes=num_bytes)
        for seed in range(num_seeds)
        for site, auc in ALONE.items()
    ]


ROWS = [*runs("local", num_bytes=0), *runs("fedavg", 0.05, large=-0.05), *runs("fedhelp", 0.1)]


def evidence(*rows: Row) -> TaskEvidence:
    (only,) = by_task(rows)
    return only


def page_of(rows: list[Row], folder: Path) -> str:
    write_page(rows, folder / "results.md")
    return (folder / "results.md").read_text()


def test_a_methods_line_has_the_figures_worked_out_by_hand(tmp_path: Path) -> None:
    lines = page_of(ROWS, tmp_path).splitlines()
    # Of two small sites a resample draws one: .8 or .9. All gains are equal. 2000 bytes and 5 s in ten rounds.
    assert (
        "| `fedhelp` | 0.850 [0.800, 0.900] | **+0.100 [+0.100, +0.100]** | – | 0.800 (clinic-b) "
        "| 0.950 [0.950, 0.950] | ±0.000 [±0.000, ±0.000] | 0.2 kB | 0.5 | 3 |"
    ) in lines
    assert (
        "| `fedavg` | 0.800 [0.750, 0.850] | **+0.050 [+0.050, +0.050]** | *−0.050 [−0.050, −0.050]* "
        "| 0.750 (clinic-b) | 0.900 [0.900, 0.900] | *−0.050 [−0.050, −0.050]* | 0.2 kB | 0.5 | 3 |"
    ) in lines
    assert "| `fedavg` | **+0.050 [+0.050, +0.050]** | 1 / 0 / 0 |" in lines
    assert "| Small sites do better than alone | **holds** |" in lines


def test_the_same_rows_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = page_of(ROWS, tmp_path / "a"), page_of(ROWS[::-1], tmp_path / "b")
    assert first == second
    for name in ("results-pneumonia.svg", "results-pneumonia-bytes.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "results-pneumonia-bytes.svg", "results-pneumonia.svg", "results.md",
    ]  # fmt: skip


def test_a_gain_at_every_site_and_seed_holds_and_one_that_wavers_is_not_shown() -> None:
    sure = ahead_of_alone(evidence(*ROWS), "fedhelp")
    assert sure == Verdict("holds", "the small sites' mean difference is **+0.100 [+0.100, +0.100]**.")
    wavering = [row("fedhelp", "clinic-a", 0.8 + gain, seed=seed) for seed, gain in enumerate((0.3, -0.1, 0.1))]
    assert ahead_of_alone(evidence(*runs("local"), *wavering), "fedhelp").answer == "not shown"
    assert ahead_of_alone(evidence(*runs("local"), *runs("fedhelp", -0.01)), "fedhelp").answer == "does not hold"
    one_seed = [*runs("local", num_seeds=1), *runs("fedhelp", 0.1, num_seeds=1)]
    assert ahead_of_alone(evidence(*one_seed), "fedhelp").answer == "not shown"
    assert ahead_of_alone(evidence(*runs("fedhelp")), "fedhelp").answer == "cannot be said"


def test_only_baselines_that_move_no_more_bytes_are_held_against_a_method() -> None:
    better_but_dear = runs("fedprox", 0.2, num_bytes=1051)  # a twentieth more still counts as no more
    told = ahead_at_no_more_bytes(evidence(*ROWS, *better_but_dear), "fedhelp")
    assert told.answer == "holds"
    assert told.because == "with 2.0 kB in the whole run: ahead of `fedavg` (2.0 kB) **+0.050 [+0.050, +0.050]**."
    better_and_cheap = runs("fedprox", 0.2, num_bytes=1050)
    told = ahead_at_no_more_bytes(evidence(*ROWS, *better_and_cheap), "fedhelp")
    assert told.answer == "does not hold"
    assert "behind `fedprox` (2.1 kB) *−0.100 [−0.100, −0.100]*" in told.because
    pooled_is_no_baseline = [*runs("local"), *runs("pooled", 0.9), *runs("fedhelp", 0.1)]
    assert ahead_at_no_more_bytes(evidence(*pooled_is_no_baseline), "fedhelp").answer == "cannot be said"


@pytest.mark.parametrize(
    ("large", "answer"), [(0.01, "holds"), (-0.004, "holds"), (-0.006, "does not hold")]
)  # fmt: skip
def test_a_large_site_may_lose_half_a_point_and_no_more(large: float, answer: str) -> None:
    rows = [*runs("local"), *runs("fedhelp", 0.1, large=large)]
    assert hospitals_lose_nothing(evidence(*rows), "fedhelp").answer == answer


def test_large_sites_that_lose_at_some_seeds_are_not_called_safe() -> None:
    changes = (0.02, 0.0, -0.02)
    rows = [row("fedhelp", "hospital-a", 0.95 + change, seed=seed) for seed, change in enumerate(changes)]
    told = hospitals_lose_nothing(evidence(*runs("local"), *rows), "fedhelp")
    assert told.answer == "not shown"
    assert "±0.0000 [−0.0200, +0.0200]" in told.because


def test_what_each_part_was_worth_is_said_also_where_it_was_nothing(tmp_path: Path) -> None:
    ablations = [*runs("fedhelp_no_guidance", 0.08), *runs("fedhelp_no_backward", 0.1), *runs("fedhelp_new", 0.12)]
    page = page_of([*ROWS, *ablations], tmp_path)
    nothing = "was worth nothing that shows on pneumonia"
    assert f"- the foundation model's guidance: helped on pneumonia (small sites); {nothing} (large sites)." in page
    assert f"- the small network teaching the large one: {nothing} (small sites) and pneumonia (large sites)." in page
    assert f"- new: did harm on pneumonia (small sites); {nothing} (large sites)." in page
    assert "| new | pneumonia | *−0.020 [−0.020, −0.020]* | ±0.000 [±0.000, ±0.000] |" in page


def test_what_is_missing_is_said() -> None:
    fewer = [one for one in runs("fedprox") if (one.seed, one.site) not in {(1, "clinic-b")} and one.seed != 2]
    silent = row("fedavg", "clinic-a", 0.8, task="skin")
    blind = Row(**{**{name: getattr(silent, name) for name in silent.__struct_fields__}, "site": "b", "metrics": {}})
    alike = [one for one in runs("fedbn") if one.seed != 2]
    assert gaps(by_task([*ROWS, *fewer, *alike, silent, blind])) == [
        "pneumonia: `fedprox` and `fedbn` have no run of seed 2.",
        "pneumonia: `fedprox` has no row of clinic-b (seed 1).",
        "skin: no run of `local`, `fedprox`, `fedbn` and `fedhelp`.",
        "skin: 1 of the 3 seeds that the intervals need to mean much.",
        "skin: 1 of the 2 rows of `fedavg` have no AUC.",
    ]


def test_unseen_sites_and_personal_models_may_have_seeds_of_their_own() -> None:
    unseen = [row("global", "far", 0.7, seed=seed) for seed in (7, 8)]
    personal = [one for one in runs("personal_10", 0.1) if one.seed == 1]
    (found,) = by_task([*ROWS, *unseen, row("routed", "far", 0.8, seed=7), *personal])
    assert found.seeds == (0, 1, 2)
    assert gaps([found]) == ["pneumonia: `routed` has no run of seed 8."]


def test_an_unknown_method_task_and_metric_break_nothing(tmp_path: Path) -> None:
    odd = [
        Row(
            task="hippo|campus_8", method="<b>new*", seed=seed, site="s|1", role="clinic", num_train=1,
            metrics={"surface": 12.5, "volume": 3.0}, bytes_up=0, bytes_down=0, seconds=0, rounds=0,
        )
        for seed in (0, 1)
    ]  # fmt: skip
    page = page_of([*odd, *ROWS], tmp_path)
    line = "| `&lt;b&gt;new&#42;` | 12.5 [12.5, 12.5] | – | – | 12.5 (s&#124;1) | – | – | 0 | 0 | 2 |"
    assert line in page.splitlines()
    assert "<b>" not in page
    for path in re.findall(r"\]\((results-[^)]+)\)", page):
        assert (tmp_path / path).exists()


def test_sites_that_never_trained_have_a_table_of_their_own_against_the_global_model(tmp_path: Path) -> None:
    unseen = [row(m, "site-x", auc, seed=seed) for m, auc in (("global", 0.6), ("routed", 0.7)) for seed in range(2)]
    page = page_of([*ROWS, *unseen], tmp_path)
    assert "## Sites that never trained" in page
    assert "| `routed` | 0.700 [0.700, 0.700] | **+0.100 [+0.100, +0.100]** | 0.700 (site-x) | 2 |" in page
    assert "Seeds of the sites that never trained: 0, 1." in page
    assert "## Sites that never trained" not in page_of(ROWS, tmp_path)
    assert "## Sites that never trained" in page_of(unseen, tmp_path)


def test_the_way_to_the_best_expert_and_the_worst_site_are_worked_out_by_hand(tmp_path: Path) -> None:
    figures = {
        "global": (0.6, 0.8), "soup": (0.59, 0.8), "oracle": (0.8, 0.84), "oracle_half": (0.7, 0.81),
        "routed": (0.72, 0.79),
    }  # fmt: skip
    rows = [
        row(way, site, auc, seed=seed, task=task)
        for way, by_task_ in figures.items()
        for (task, site), auc in zip((("one", "site-x"), ("two", "site-y")), by_task_, strict=True)
        for seed in range(2)
    ]
    page = page_of(rows, tmp_path)
    # gains .12 and -.01, of .2 and .04: .11 / .24; of the soup the gains are -.01 and 0
    assert "0.46 | −0.010 (two: site-y) |" in page
    assert "- At least a third of the way to the best expert: **holds**: 0.46 (one 0.60, two −0.25)." in page
    # .11 / (.1 + .01)
    assert "by the other half's labels: **holds**: 1.00 (one 1.20, two −1.00)." in page
    assert "by more than 0.005: does not hold: two: site-y with −0.0100." in page
    assert "- Ahead of the global model: not shown: +0.055" in page
    assert "−0.04 | −0.010 (one: site-x) |" in page


def test_what_people_wrote_beside_it_is_kept_in_the_page(tmp_path: Path) -> None:
    (tmp_path / "results_notes.md").write_text("The clinics' scans are old.\n")
    page = page_of(ROWS, tmp_path)
    assert "The clinics' scans are old.\n\n<!-- end of results_notes.md -->" in page
    assert page.index("## Notes") < page.index("## What held and what did not work")


def test_a_site_that_counts_twice_in_one_run_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 rows for clinic 'clinic-a' of task 'pneumonia', method 'fedavg', seed 1"):
        write_page([*ROWS, row("fedavg", "clinic-a", 0.9, seed=1)], tmp_path / "results.md")
    with pytest.raises(DataError, match="no rows"):
        write_page([], tmp_path / "results.md")
    assert list(tmp_path.iterdir()) == []


def test_the_command_makes_the_page(tmp_path: Path) -> None:
    from ayni_coordinator.cli import register

    write_rows(tmp_path / "rows.json", ROWS)
    register(app)
    run = CliRunner().invoke(app, ["results", str(tmp_path / "rows.json"), "--out", str(tmp_path / "page.md")])
    assert run.exit_code == 0, run.output
    assert (tmp_path / "page.md").read_text().startswith("# Results")
    assert (tmp_path / "page-pneumonia.svg").exists()


def test_every_method_that_can_be_run_has_a_title_on_the_page() -> None:
    assert set(known_methods()) <= known_titles().keys()


@pytest.mark.skipif(not (DOCS / "results.json").exists(), reason="no results have been measured yet")
def test_the_page_in_the_documentation_is_what_its_rows_give_and_every_method_on_it_has_a_title(tmp_path: Path) -> None:
    rows = read_rows(DOCS / "results.json")
    notes = DOCS / "results_notes.md"
    if notes.exists():
        (tmp_path / notes.name).write_bytes(notes.read_bytes())
    write_page(rows, tmp_path / "results.md")
    for made in sorted({*tmp_path.glob("results*")} - {tmp_path / notes.name}):
        assert made.read_bytes() == (DOCS / made.name).read_bytes(), f"run ayni results: {made.name} is not current"
    assert {one.method for one in rows} <= known_titles().keys()


def few(method: str, gain: float, *, task: str, num_seeds: int = 3, down: int = 1000) -> list[Row]:
    """Two small sites and a large one, with a Dice of `gain` over what each has alone."""
    sites: list[tuple[str, SiteRole, float]] = [("a", "clinic", 0.7), ("b", "clinic", 0.8), ("c", "hospital", 0.6)]
    return [
        Row(
            task=task, method=method, seed=seed, site=site, role=role, num_train=4,
            metrics={"dice": alone + gain, "hd95": 4.0, "assd": 1.25, "dice_left": alone, "hd95_left": 3.0},
            bytes_up=500, bytes_down=down, seconds=10.0, rounds=10,
        )
        for seed in range(num_seeds)
        for site, role, alone in sites
    ]  # fmt: skip


def test_few_labels_are_judged_by_figures_worked_out_by_hand(tmp_path: Path) -> None:
    rows = [
        line
        for task, taught in (("h_4", 0.09), ("h_8", 0.05))
        for method, gain, down in (
            ("local", 0.0, 0), ("pooled", 0.1, 0), ("fedavg", 0.02, 1000), ("mean_teacher", 0.03, 1000),
            ("fixmatch", 0.01, 1000), ("pseudo_label", 0.02, 1000), ("dual_kd", taught, 61_000),
        )
        for line in few(method, gain, task=task, down=down)
    ]  # fmt: skip
    page = page_of(rows, tmp_path)
    assert "At least two thirds of the way from alone to pooled: **holds**: 0.90." in page
    assert "At least two thirds of the way from alone to pooled: does not hold: 0.50." in page
    assert "| `dual_kd` | +0.060 (`mean_teacher`) | +0.020 (`mean_teacher`) | **yes** |" in page
    assert page.count("Ahead of every rival that learns from unlabelled images: **holds**") == 2
    assert "| h_4 | 60.0 kB | 0.1 kB | 1 | 1 |" in page  # 60,000 bytes once; (1000 + 500) / 10 a round
    assert "small sites: HD95, mm (lower is better)" in page
    assert "| small sites | left: Dice | left: HD95, mm | left: ASSD, mm |" in page


def test_a_part_of_dual_distillation_is_measured_against_dual_distillation(tmp_path: Path) -> None:
    rows = [
        *few("local", 0.0, task="h_4"),
        *few("dual_kd", 0.05, task="h_4"),
        *few("dual_kd_no_response", 0.02, task="h_4"),
    ]
    page = page_of(rows, tmp_path)
    assert "| the teacher's answers | h_4 | **+0.030 [+0.030, +0.030]** | **+0.030 [+0.030, +0.030]** |" in page
