"""The report as text: what is escaped, and how many classes are worth a bar."""

from __future__ import annotations

from dataclasses import replace
from html import unescape
from pathlib import Path

import msgspec
import numpy as np

from ayni_export.bundle import Bundle, read_bundle
from ayni_export.diagnose import Diagnosis
from ayni_export.report import entry, make_report, report_html
from ayni_export.signature import Signer
from trained_home import exported_bundle

CLASSES = ("<b>bold</b>", *(f"class {number}" for number in range(1, 12)))


def twelve_classes(least_confidence: float = 0.07) -> tuple[Bundle, Diagnosis]:
    bundle = read_bundle(exported_bundle())
    info = msgspec.structs.replace(bundle.info, classes=CLASSES, title="Tom & <i>Jerry</i>", kind="alone")
    probabilities_C = np.array([0.34] + [0.06] * 11, np.float32)  # 0.34 + 11 * 0.06 = 1
    answer = Diagnosis(
        path=Path("x.png"),
        sha256="0" * 64,
        width=28,
        height=28,
        classes=CLASSES,
        logits_C=np.log(probabilities_C),
        probabilities_C=probabilities_C,
        falls_hw=np.ones((28, 28), np.float32),
        least_confidence=least_confidence,
        shown_HWK=np.zeros((28, 28, 1), np.uint8),
    )
    return replace(bundle, info=info), answer


def page_of(bundle: Bundle, answer: Diagnosis) -> str:
    made = entry(bundle, answer, 1)
    report = make_report(bundle, [made.reported], created="2025-11-22T10:11:12+00:00", device="cpu")
    return "".join(report_html(bundle, report, [made.section]))


def test_names_from_a_task_are_text_and_never_markup() -> None:
    bundle, answer = twelve_classes()
    page = page_of(bundle, answer)
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold&lt;/b&gt; <small>34 % · undecided" in page
    assert "<h1>Tom &amp; &lt;i&gt;Jerry&lt;/i&gt;</h1>" in page
    assert "2025-11-22, 10:11 UTC" in page
    assert "trained alone" in page


def test_only_the_likeliest_classes_get_a_bar_and_the_rest_are_counted() -> None:
    bundle, answer = twelve_classes()
    made = entry(bundle, answer, 1)
    assert made.section.count('class="bar') - 1 == 8  # one more is the box around them
    assert "4 less likely classes in report.json" in made.section
    assert len(made.reported.probabilities) == 12


def test_under_the_heat_map_stands_what_it_is_and_what_it_is_not() -> None:
    bundle, answer = twelve_classes()
    name = "<em>&lt;b&gt;bold&lt;/b&gt;</em>"
    assert (
        f"Hiding the coloured places lowers {name}, the yellow ones most: from 34 % to 7 %. "
        "Not a segmentation, and no proof." in entry(bundle, answer, 1).section
    )
    bundle, answer = twelve_classes(least_confidence=0.338)
    assert f"Hiding any one place leaves {name} at 34 %" in entry(bundle, answer, 1).section


def test_the_report_says_who_signed_who_vouches_and_whether_anybody_compared_it() -> None:
    bundle, answer = twelve_classes()
    signer = bundle.signer
    known = f"north-clinic ({signer.fingerprint}), a site of the federation of the coordinator with fingerprint "
    known += f"{signer.coordinator}. "
    not_compared = "Not compared with a fingerprint that somebody gave you"
    for changed, words in (
        (signer, known + not_compared),
        (replace(signer, compared="coordinator"), known + "The coordinator's fingerprint was compared"),
        (replace(signer, compared="site"), known + "The site's fingerprint was compared"),
        (Signer(signer.signing_key), f"{signer.fingerprint}; no coordinator vouches for this key. {not_compared}"),
    ):
        assert words in unescape(page_of(replace(bundle, signer=changed), answer))
