"""The figures of ``benchmarks/README.md``, drawn from the CSV files in ``benchmarks/results``."""

from __future__ import annotations

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.pages.readme import masking_rows, newest, read

FIGURES = Path(__file__).parents[1] / "figures"
ORDER = ("host", "naive", "two-pass", "masksd")
OPERATIONS = ("select", "embed forward", "embed forward and backward")


def train_step() -> None:
    """Time and kept activations of every provider, in host steps."""
    groups: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in newest(read("train_step"), "model", "device", "provider"):
        groups.setdefault((row["model"], row["device"]), {})[row["provider"]] = row
    figure, axes = plt.subplots(
        len(groups), 2, figsize=(11, 0.9 + 2.6 * len(groups)), squeeze=False, layout="constrained"
    )
    for line, ((model, device), rows) in zip(axes, groups.items(), strict=True):
        names = [name for name in rows if not name.endswith("eval")]
        names.sort(key=lambda name: (ORDER.index(name.split()[0]), name))
        first = rows[names[0]]
        title = f"{model}, {first['image_size']} px, batch {first['batch']}, {device}"
        _bars(line[0], names, [float(rows[n]["to_host"]) for n in names], "time of a step / host's")
        _bars(
            line[1],
            names,
            [float(rows[n]["kept_to_host"]) for n in names],
            "kept activations / host's",
        )
        line[0].set_title(title, fontsize=9, loc="left")
        if first["d"]:
            bound = 2 + float(first["d"])
            line[0].axvline(bound, color="black", linewidth=0.8, linestyle=":")
            line[0].text(bound, -0.75, f"2 + d = {bound:.2f}", fontsize=7, ha="center")
    figure.savefig(FIGURES / "train_step.png", dpi=110)
    plt.close(figure)


def _bars(axis: Axes, names: list[str], values: list[float], label: str) -> None:
    colors = ["#9aa5b1" if n in ("host", "naive", "two-pass") else "#2f6fb5" for n in names]
    axis.barh(names, values, color=colors)
    for place, value in enumerate(values):
        axis.text(value + 0.03, place, f"{value:.2f}", va="center", fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(0, max(values) * 1.12)
    axis.set_xlabel(label, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def masking() -> None:
    """Milliseconds against the number of tokens, a panel an operation."""
    rows = masking_rows()
    figure, axes = plt.subplots(1, len(OPERATIONS), figsize=(11, 3.2), layout="constrained")
    for axis, operation in zip(axes, OPERATIONS, strict=True):
        of_operation = [row for row in rows if row["operation"] == operation]
        for provider in dict.fromkeys(row["provider"] for row in of_operation):
            points = sorted(
                (int(row["tokens"]), float(row["milliseconds"]))
                for row in of_operation
                if row["provider"] == provider
            )
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=provider)
        axis.set_title(operation, fontsize=9)
        axis.set_xlabel("tokens", fontsize=8)
        axis.set_ylabel("ms", fontsize=8)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"batch 32, width 768, fp32, {rows[0]['device']}", fontsize=9)
    figure.savefig(FIGURES / "masking.png", dpi=110)
    plt.close(figure)


def draw_all() -> None:
    train_step()
    masking()
