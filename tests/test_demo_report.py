"""The demo's report: one page that loads nothing and says no more than the figures."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from ayni.errors import UserError
from ayni.task import Role
from ayni_coordinator.demo.report import write_report
from ayni_coordinator.demo.results import (
    Curve,
    DemoResults,
    Metrics,
    ReportExtras,
    Sample,
    SiteResult,
    Step,
    fedavg_bytes,
    read_results,
)
from ayni_coordinator.demo.wording import headline

# A red pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
SITES = [
    ("clinic-d", "clinic", 94, 0.861, 0.941),
    ("clinic-a", "clinic", 377, 0.921, 0.948),
    ("hospital-b", "hospital", 942, 0.951, 0.949),
    ("hospital-a", "hospital", 2825, 0.966, 0.967),
    ("clinic-c", "clinic", 188, 0.911, 0.947),
    ("clinic-b", "clinic", 282, 0.903, 0.944),
]


def site(name: str, role: Role, num_train: int, alone: float, together: float) -> SiteResult:
    return SiteResult(
        name=name,
        role=role,
        num_train=num_train,
        bytes_up=310_000,
        bytes_down=690_000,
        local=Metrics(auc=alone, balanced_accuracy=alone - 0.1),
        federated=Metrics(auc=together, balanced_accuracy=together - 0.09),
    )


def demo_results(*sites: SiteResult) -> DemoResults:
    known = [site(*row) for row in SITES]  # type: ignore[arg-type]
    return DemoResults(task="pneumonia", seed=0, rounds=20, wall_s=431.7, sites=list(sites) or known)


def full_extras() -> ReportExtras:
    steps = [
        Step(title="Join", text="Six sites joined.", start_s=0.0, wall_s=3.1),
        Step(title="Learn", text="20 rounds.", start_s=3.1, wall_s=420.0),
    ]
    chances = {"normal": 0.09, "pneumonia": 0.91}
    samples = [
        Sample(site="clinic-d", image="1.png", picture=PNG, heat_map=PNG, probabilities=chances, truth="pneumonia"),
        Sample(site="clinic-a", image="2.png", picture=PNG, heat_map=PNG, probabilities=chances, truth="normal"),
    ]
    curves = [
        Curve(site=name, num_holdout=num_train // 4, federated=[0.5, None, 0.9], alone=[0.5, 0.7, 0.8])
        for name, _, num_train, _, _ in SITES
    ]
    return msgspec.structs.replace(
        few_extras(),
        guidance="efficientnet-lite0 0.1.0",
        guidance_calls=524,
        curves=curves,
        steps=steps,
        samples=samples,
        bytes_by_purpose={"clinic-a": {"updates": 250_000, "public images": 300_000}},
        versions={"ayni": "0.1.0"},
        machine="2 cores",
        created="2026-01-31T12:00:00+00:00",
    )


def few_extras() -> ReportExtras:
    return ReportExtras(
        title="Pneumonia on chest X-rays",
        num_weights=113_000,
        num_public=524,
        num_test_per_class={"normal": 234, "pneumonia": 390},
        data_credit="PneumoniaMNIST of MedMNIST v2 (Yang et al. 2023), CC BY 4.0",
    )


class Page(HTMLParser):
    """Reads the page strictly: every element is closed in order. Keeps text, attributes and headings."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"br", "img", "meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def write_page(folder: Path, results: DemoResults, extras: ReportExtras) -> tuple[str, Page]:
    source = write_report(results, extras, folder).read_text("utf-8")
    return source, Page(source)


def test_the_page_holds_each_sites_figures(tmp_path: Path) -> None:
    _, page = write_page(tmp_path, demo_results(), full_extras())
    for name, _, num_train, alone, together in SITES:
        row = f"{name} {num_train:,} {alone:.3f} {together:.3f}"
        assert row in page.text
        assert f"{name} {num_train:,} training images {alone:.3f} → {together:.3f}" in page.text
    assert "= −0.002" in page.text  # hospital-b: level, not worse
    assert "▲ +0.080" in page.text  # clinic-d
    assert "1.00 MB 5.5%" in page.text  # 1,000,000 / (20 * 2 * 4 * 113,000)
    assert "20 rounds × 2 ways × 4 bytes × 113,000 weights = 18,080,000 bytes" in page.text
    assert "7 min 12 s" in page.text


def test_hospitals_come_first_and_the_largest_site_of_each_kind(tmp_path: Path) -> None:
    _, page = write_page(tmp_path, demo_results(), full_extras())
    table = page.text[page.text.index("All figures as a table") :]
    places = [
        table.index(name) for name in ("hospital-a", "hospital-b", "clinic-a", "clinic-b", "clinic-c", "clinic-d")
    ]
    assert places == sorted(places)


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    source, page = write_page(tmp_path, demo_results(), full_extras())
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", source)
    assert "//" not in without_pictures
    assert not re.search(r"url\(|@import|<script|<link|<iframe|\son\w+=", without_pictures)
    assert {attributes["src"] for tag, attributes in page.elements if tag == "img"} == {
        f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    }


def test_what_comes_from_outside_is_text(tmp_path: Path) -> None:
    evil = "<script>alert('\"1&2')</script>"
    extras = msgspec.structs.replace(
        full_extras(),
        title=evil,
        machine=evil,
        curves=[Curve(site=evil, num_holdout=3, federated=[0.5, 0.6], alone=[])],
        steps=[Step(title=evil, text=evil, start_s=0, wall_s=1)],
        samples=[
            Sample(site=evil, image=evil, picture=PNG, heat_map=PNG, probabilities={evil: 0.7, "b": 0.3}, truth=evil)
        ],
        bytes_by_purpose={evil: {evil: 1}},
        versions={evil: evil},
    )
    source, page = write_page(tmp_path, demo_results(site(evil, "clinic", 10, 0.8, 0.9)), extras)
    assert "<script" not in source
    assert evil in page.text
    assert all(tag != "script" for tag, _ in page.elements)
    labels = [attributes.get("aria-label") or "" for _, attributes in page.elements]
    assert any(evil in label for label in labels)


def test_every_picture_has_a_text_alternative(tmp_path: Path) -> None:
    _, page = write_page(tmp_path, demo_results(), full_extras())
    pictures = [attributes for tag, attributes in page.elements if tag in {"svg", "img"}]
    assert len(pictures) > 20
    for attributes in pictures:
        assert attributes.get("alt") or attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_a_wrong_diagnosis_is_shown_as_wrong(tmp_path: Path) -> None:
    _, page = write_page(tmp_path, demo_results(), full_extras())
    assert "✓ right – model: pneumonia, label: pneumonia" in page.text
    assert "✗ wrong – model: pneumonia, label: normal" in page.text


def test_a_report_without_curves_story_and_samples_leaves_them_out(tmp_path: Path) -> None:
    _, page = write_page(tmp_path, demo_results(), few_extras())
    headings = ["Alone, and together", "Over the line", "How to read this"]
    assert all(heading in page.text for heading in headings)
    assert not any(heading in page.text for heading in ("While they learned", "What happened", "Some diagnoses"))


def test_results_json_has_exactly_the_promised_fields(tmp_path: Path) -> None:
    write_report(demo_results(), full_extras(), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["task", "seed", "rounds", "wall_s", "sites"]
    for one in results["sites"]:
        assert list(one) == ["name", "role", "num_train", "bytes_up", "bytes_down", "local", "federated"]
        assert list(one["local"]) == list(one["federated"]) == ["auc", "balanced_accuracy"]
    assert read_results(tmp_path) == (demo_results(), full_extras())


def test_a_folder_without_results_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        (
            [("clinic", 0.02), ("clinic", 0.01), ("hospital", 0.001)],
            "Both clinics … ; the hospital did not lose by it.",
        ),
        ([("clinic", 0.02), ("clinic", 0.001)], "One of two clinics …, and none worse."),
        ([("clinic", 0.02), ("clinic", 0.02), ("clinic", -0.02)], "Two of three clinics … ."),
        ([("clinic", -0.02), ("hospital", -0.03)], "No clinic … ; hospital lost by it."),
        ([("clinic", 0.02)] * 4 + [("hospital", 0.02)], "All four clinics … ; the hospital gained too."),
        ([("hospital", -0.004), ("hospital", 0.02)], "No hospital lost more than 0.005 of AUC."),
        ([("clinic", 0.02), ("hospital", 0.02), ("hospital", 0.01)], "The clinic … ; the hospitals gained too."),
    ],
)
def test_the_headline_claims_no_more_than_the_figures(gains: list[tuple[Role, float]], expected: str) -> None:
    sites = [site(role, role, 10, 0.9, 0.9 + gain) for role, gain in gains]
    said = headline(demo_results(*sites))
    assert re.sub(r"diagnoses? better together than alone", "…", said) == expected.replace("… ", "…")


def test_federated_averaging_moves_all_weights_both_ways_in_each_round() -> None:
    assert fedavg_bytes(3, 10) == 240  # 3 rounds * 2 ways * 4 bytes * 10 weights
