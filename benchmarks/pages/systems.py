"""The table of systems on the front page: whose each is, how to switch it on, cost and gain."""

from __future__ import annotations

from benchmarks.pages import students
from benchmarks.pages.published import Published, gain_cell
from benchmarks.pages.readme import read
from benchmarks.study.summary import Summary
from masksd.kit.printing import markdown_table

HEAD = [
    "system",
    "from its source",
    "our reading",
    "switch it on",
    "cost",
    "tiny models on shapes, mIoU, testA",
]


def systems() -> str:
    """One line for each system that is part of this project."""
    cris, lavt = (
        Published("confirm", model).found("testA") for model in ("clip_cris_tiny", "lavt_tiny")
    )
    lda, ours = (
        students.found(name, "testA")[row]
        for name, row in (("neck", "LDA neck"), ("student", "ours"))
    )
    lines = [
        [
            "CM-MaskSD",
            "both passes, Eq. 1 to 9",
            "where tokens are masked",
            "`wrap(model)`",
            f"× {_ratio('clip_cris_vit_b16'):.2f} in training",
            _gain(cris["cm-masksd"], "over CRIS"),
        ],
        [
            "[CRIS](masksd/models/cris.py)",
            "neck, decoder, head, weights",
            "levels of a ViT",
            '`create_model("clip_cris_rn50")`',
            "the host",
            _score(cris["host"]),
        ],
        [
            "[LDA](masksd/models/lda.py)",
            "an abstract",
            "every formula",
            '`create_model("clip_lda_vit_b16")`',
            f"× {lda.cost:.2f} of CRIS's",
            _gain(lda, "over CRIS's neck, with CRIS's settings"),
        ],
        [
            "[Channel KD](masksd/knowledge/losses.py)",
            "an abstract",
            "every formula",
            "`CrossModalDistill`, `train --teacher`",
            f"× {ours.cost:.2f} in training",
            _gain(ours, "over the student alone"),
        ],
        [
            "LAVT, as a host",
            "fusion in the tower",
            "a recipe for its modules",
            "`wrap(lavt)`",
            f"× {lavt['cm-masksd'].cost:.2f} in training",
            _gain(lavt["cm-masksd"], "over LAVT"),
        ],
    ]
    return markdown_table(HEAD, lines)


def _ratio(model: str) -> float:
    rows = [row for row in read("step_cost") if row["model"] == model]
    return float(next(row["step_ratio"] for row in rows if row["provider"] == "masksd"))


def _gain(summary: Summary, over: str) -> str:
    steps, compute = (
        gain_cell(each.get("mIoU")) for each in (summary.equal_steps, summary.equal_compute)
    )
    longer = f"; {compute} at equal compute" if compute else ""
    return f"{steps} {over}{longer}; {len(summary.seeds)} seeds"


def _score(summary: Summary) -> str:
    mean, deviation = (100 * each["mIoU"] for each in (summary.mean, summary.deviation))
    return f"{mean:.1f} ± {deviation:.1f}; {len(summary.seeds)} seeds"
