"""The tables of ``benchmarks/README.md``, written from the CSV files in ``benchmarks/results``."""

from __future__ import annotations

import csv
import statistics
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.measure import FOLDER
from masksd.kit.printing import markdown_table

README = Path(__file__).parents[1] / "README.md"


def read(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def newest(rows: list[dict[str, str]], *names: str) -> list[dict[str, str]]:
    """Keep the last of the rows that agree in these columns."""
    return list({tuple(row[name] for name in names): row for row in rows}.values())


def step_cost() -> str:
    groups: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for row in read("step_cost"):
        key = row["model"], row["image_size"], row["tokens"]
        groups.setdefault(key, {})[row["provider"]] = row
    tables = []
    for (model, size, tokens), rows in groups.items():
        share = float(rows["host"]["d"])
        table = markdown_table(
            ["provider", "forward, G", "× host", "forward and backward, G", "× host"],
            [
                [
                    provider,
                    f"{float(row['forward_gmac']):.2f}",
                    f"{float(row['forward_ratio']):.3f}",
                    f"{float(row['step_gmac']):.2f}",
                    f"{float(row['step_ratio']):.3f}",
                ]
                for provider, row in rows.items()
            ],
        )
        tables.append(
            f"`{model}`, {size} px, {tokens} tokens, per image; d = {share:.3f}, "
            f"2 + d = {2 + share:.3f}, torch {rows['host']['torch']}:\n\n{table}"
        )
    return "\n\n".join(tables)


def train_step() -> str:
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in newest(read("train_step"), "model", "device", "provider"):
        groups.setdefault((row["model"], row["device"]), []).append(row)
    tables = []
    for (model, device), rows in groups.items():
        lines = [
            [
                row["provider"],
                f"{float(row['seconds']):.4g}",
                *(f"{float(row[n]):.3f}" if row[n] else "" for n in ("to_host", "to_naive")),
                f"{float(row['kept_to_host']):.3f}" if row["kept_to_host"] else "",
                f"{float(row['peak_mb']):,.0f}" if row["peak_mb"] else "",
            ]
            for row in rows
        ]
        first = rows[0]
        head = ["provider", "s per step", "× host", "× naive", "kept × host's", "peak, MB"]
        share = ""
        if first["d"]:
            d, kept = float(first["d"]), float(first["d_kept"])
            share = f"; 2 + d = {2 + d:.3f} in multiply-adds, {2 + kept:.3f} in kept bytes"
        tables.append(
            f"`{model}`, {first['image_size']} px, batch {first['batch']}, {first['tokens']} "
            f"tokens, {first['precision']}{share}; {first['rounds']} rounds on {device}, torch "
            f"{first['torch']}:\n\n{markdown_table(head, lines)}"
        )
    return "\n\n".join(tables)


def towers() -> str:
    rows = newest(read("towers"), "host", "provider")
    lines = [
        [row["host"], row["provider"], f"{2 + float(row['d']):.3f}"]
        + [f"{float(row[name]):.3f}" for name in ("counted", "timed")]
        for row in rows
        if row["provider"] != "host"
    ]
    table = markdown_table(["host", "taps", "2 + d", "counted × host", "timed × host"], lines)
    first = rows[0]
    return f"{table}\n\n{first['rounds']} rounds on {first['device']}, torch {first['torch']}."


def masking_rows() -> list[dict[str, str]]:
    """The sizes that the page shows."""
    rows = newest(read("masking"), "operation", "provider", "batch", "tokens", "width", "dtype")
    return [
        row for row in rows if (row["batch"], row["width"], row["dtype"]) == ("32", "768", "fp32")
    ]


def masking() -> str:
    rows = masking_rows()
    lines = [
        [
            row["operation"],
            f"{row['batch']} x {row['tokens']} x {row['width']} {row['dtype']}",
            row["provider"],
            f"{float(row['milliseconds']):.3f}",
            *(f"{float(row[n]):.2f}" if row[n] else "" for n in ("to_eager", "to_where")),
            _share(row["gb_per_s"], row["copy_gb_per_s"]),
        ]
        for row in sorted(rows, key=lambda row: row["operation"] != "select")
    ]
    head = ["operation", "size", "provider", "ms", "× eager", "× where", "of copying's speed"]
    return f"{markdown_table(head, lines)}\n\nOn {rows[0]['device']}, torch {rows[0]['torch']}."


def _share(part: str, whole: str) -> str:
    return f"{float(part) / float(whole):.0%}" if part else ""


def joined_decode() -> str:
    rows = newest(read("joined_decode"), "model", "batch", "provider")
    lines = [
        [
            row["model"],
            row["batch"],
            f"{float(row['seconds']):.4f}",
            f"{float(row['to_two_calls']):.3f}",
        ]
        for row in rows
        if row["provider"] == "joined"
    ]
    head = ["model", "batch", "s, joined", "× two calls"]
    return f"{markdown_table(head, lines)}\n\nOn {rows[0]['device']}, torch {rows[0]['torch']}."


def default_run() -> str:
    rows = newest(read("default_run"), "seed", "sentence")
    seeds = sorted({row["seed"] for row in rows}, key=int)
    kinds = {
        "own": "the right sentence",
        "other": "another object's sentence",
        "none": "no sentence",
    }
    table = []
    for kind, name in kinds.items():
        of_kind = [row for row in rows if row["sentence"] == kind]
        line = [name]
        for metric in ("mIoU", "oIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9"):
            line.append(" / ".join(f"{100 * float(row[metric]):.1f}" for row in of_kind))
        table.append(line)
    own = [row for row in rows if row["sentence"] == "own"]
    seconds = [float(row["seconds"]) for row in own]
    first = own[0]
    return (
        markdown_table(["sentence", "mIoU", "oIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9"], table)
        + f"\n\nSeeds {', '.join(seeds)}; {first['steps']} steps; a whole run, with generating and "
        f"drawing: {min(seconds):.0f} to {max(seconds):.0f} s, median "
        f"{statistics.median(seconds):.0f} s, on {first['device']}, torch {first['torch']}."
    )


def index_cost() -> str:
    rows = newest(read("index_cost"), "step")
    base = next(float(row["peak_mb"]) for row in rows if row["step"] == "import")
    lines = []
    for row in rows:
        peak = float(row["peak_mb"])
        lines.append(
            [row["step"], f"{float(row['seconds']):.3f}", f"{peak:.0f}", f"{peak - base:.0f}"]
        )
    head = ["step", "seconds", "peak memory, MB", "without the imports"]
    table = markdown_table(head, lines)
    last = rows[-1]
    return (
        f"{table}\n\n{int(last['refs']):,} refs, {int(last['sentences']):,} sentences; sources "
        f"{last['sources_mb']} MB, index {last['index_mb']} MB, on {last['device']}, python "
        f"{last['python']}, numpy {last['numpy']}."
    )


def loading() -> str:
    rows = newest(read("loading"), "step")
    lines = [
        [
            row["step"],
            f"{float(row['milliseconds']):.2f}",
            f"{float(row['pictures_per_second']):,.0f}",
            f"{float(row['pictures_per_second_and_core']):,.0f}",
            f"{float(row['waiting']):.1%}" if row["waiting"] else "",
        ]
        for row in rows
    ]
    head = ["step", "ms per image", "images/s", "images/s per core", "waiting for data"]
    first = rows[0]
    return (
        f"{markdown_table(head, lines)}\n\nAt {first['image_size']} px (training: the small "
        f"model's own size, on {rows[-1]['device']}), on {first['device']}, torch "
        f"{first['torch']}, Pillow {first['pillow']}, python {first['python']}."
    )


GPU_PARTS = {
    "correctness": "Differences, and the largest that are allowed",
    "masking": "Kernels; a share is that of a plain copy's speed, forward and backward of two",
    "step": "Training steps",
    "compiled step": "Compiled training steps, beside the compiled host",
}


def gpu() -> str:
    if not (FOLDER / "gpu.csv").exists():
        return "No rows from a GPU exist yet: nothing on this page was measured on one."
    rows = newest(read("gpu"), "device", "part", "name", "setting", "measure")
    tables = []
    for device in dict.fromkeys(row["device"] for row in rows):
        for part, title in GPU_PARTS.items():
            found = [row for row in rows if (row["device"], row["part"]) == (device, part)]
            if found:
                shares = {row["two_plus_d"] for row in found if row["two_plus_d"]}
                share = f"; 2 + d = {', '.join(sorted(shares))}" if shares else ""
                where = f"{device}, torch {found[-1]['torch']}, commit {found[-1]['commit']}"
                tables.append(f"{title}{share}; {where}:\n\n{_by_measure(found)}")
    return "\n\n".join(tables)


def _by_measure(rows: list[dict[str, str]]) -> str:
    """One line for each name and setting, one column for each measure, with its bound."""
    measures = list(dict.fromkeys(row["measure"] for row in rows if row["measure"]))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault((row["name"], row["setting"]), {})
        bound = row["goal" if row["verdict"] == "goal" else "bound"]
        bound = f" ({row['verdict']} {bound})" if bound else ""
        line[row["measure"]] = f"{row['value']}{bound}"
        line["note"] = row["note"] or line.get("note", "")
    notes = ["note"] if any(row["note"] for row in rows) else []
    head = ["name", "setting", *measures, *notes]
    return markdown_table(
        head, [[*key, *(line.get(n, "") for n in head[2:])] for key, line in lines.items()]
    )


def gpu_cost() -> str:
    """What a step costs on a GPU, for the front page."""
    rows = newest(read("gpu"), "part", "name", "measure")
    of_steps = [row for row in rows if row["part"] == "step"]
    found = {(row["name"], row["measure"]): float(row["value"]) for row in of_steps}
    time = {name: value for (name, measure), value in found.items() if measure == "time to host"}
    first = of_steps[0]
    text = (
        f"On an {first['device']} ({first['setting']}), a step takes {time['masksd']:.2f} times "
        f"the model's own, three plain passes {time['naive']:.2f}, `low_memory=True` "
        f"{time['masksd low_memory']:.2f} with {found['masksd low_memory', 'kept to host']:.2f} "
        f'times its activations, and one masked pass (`"augment"`) {time["masksd one pass"]:.2f} '
        "([benchmarks](benchmarks/README.md#on-a-gpu))."
    )
    return textwrap.fill(text, 105)


def render(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Replace the text between ``<!-- NAME -->`` and ``<!-- end -->`` for each table."""
    for name, table in tables.items():
        before, *after = text.split(f"<!-- {name} -->\n")
        if len(after) != 1:
            raise ValueError(f"the text must have one block <!-- {name} -->, found {len(after)}")
        _, end, rest = after[0].partition("<!-- end -->")
        text = f"{before}<!-- {name} -->\n{table()}\n{end}{rest}"
    return text


TABLES = {
    table.__name__: table
    for table in (
        *(step_cost, train_step, towers, masking, gpu),
        *(joined_decode, default_run, index_cost, loading),
    )
}


def write() -> None:
    README.write_text(render(README.read_text(), TABLES))
