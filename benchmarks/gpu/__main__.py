"""Check and time on a GPU all that a CPU cannot show, in a few minutes.

    python -m benchmarks.gpu [--minutes 8] [--parts PART ...] [--folder FOLDER]
    python -m benchmarks.gpu --tiny --folder FOLDER [--device cpu]

- ``correctness``: the kernels against their reference, the draws and a step against the CPU's,
  low memory, evaluation, no synchronisation, a CUDA graph; always done in full;
- ``masking``: the kernels, eager and compiled, against the speed of a plain copy;
- ``step``: a training step, ours and naive, against the host's and 2 + d;
- ``compiled step``: the same through ``torch.compile(sd, fullgraph=True)``.

Rows are appended to ``gpu.csv`` after each part. A part that runs out of time is cut short. The
exit code is 1 if a check of ``correctness`` fails; speed bounds are only reported, in columns.
``--tiny`` shows in seconds that all parts run; its rows stay out of ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.gpu import correctness, speed
from benchmarks.gpu.rows import FULL, TINY, Row, Size, failed, row

# By name: the share of the minutes that is gone when a part must end, and what runs it.
PARTS: dict[str, tuple[float | None, Callable[[str, Size], Iterator[Row]]]] = {
    "correctness": (None, correctness.rows),
    "masking": (0.35, speed.kernels),
    "step": (0.75, speed.step),
    "compiled step": (1.0, speed.compiled_step),
}


class OutOfTime(BaseException):
    """No Exception, so that nothing on the way takes it for its own."""


@contextlib.contextmanager
def ending(seconds: float) -> Iterator[None]:
    """Raise inside, wherever the program is, when the time is up."""
    if seconds <= 0:
        raise OutOfTime

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    # again each second, since Python drops what is raised in a finaliser
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def run_parts(
    device: str, size: Size, minutes: float, folder: Path, commit: str, parts: Iterable[str] = PARTS
) -> list[Row]:
    """Run parts and write their rows, part by part."""
    start, everything, missing = time.monotonic(), [], []
    stamp = measure.environment(device) | {"commit": commit}
    columns = [*row("", "", "", ""), *stamp]
    folder.mkdir(parents=True, exist_ok=True)
    measure.check_columns(folder / "gpu.csv", columns)
    print(stamp)
    for name in parts:
        share, part = PARTS[name]
        rows: list[Row] = []
        print(f"\n{name}, after {time.monotonic() - start:.0f} s", flush=True)
        try:
            left = 60 * minutes * (share or 0.0) - (time.monotonic() - start)
            with ending(left) if share else contextlib.nullcontext():
                for each in part(device, size):
                    rows.append(each)
                    show(each)
        except OutOfTime:
            missing.append(name)
        except Exception as error:  # the other parts may still run
            traceback.print_exc()
            rows.append(failed(name, "", error))
            show(rows[-1])
        if rows:
            measure.append("gpu", [each | stamp for each in rows], folder)
        everything += rows
        torch.compiler.reset()
        speed.free()
    print(f"\n{time.monotonic() - start:.0f} s; rows are in {folder / 'gpu.csv'}")
    if missing:
        print(f"missing or cut short, as the {minutes:g} minutes ran out: {', '.join(missing)}")
    return everything


def show(each: Row) -> None:
    against = " ".join(filter(None, (each["verdict"], each["bound"], each["note"])))
    print(
        f"{each['name']:<40}{each['setting']:<56}{each['measure']:<28}{each['value']:>10}  "
        f"{against}",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], help="default: cuda")
    add("--tiny", action="store_true", help="try all parts in seconds")
    add("--minutes", type=float, default=8.0, help="for all parts; default: 8")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--folder", type=Path, default=measure.FOLDER, help="of gpu.csv")
    add("--commit", help="of a copy that is no checkout; default: asks git")
    args = parser.parse_args(arguments)
    found = torch.cuda.is_available()
    device = args.device or ("cuda" if found or not args.tiny else "cpu")
    if device == "cuda" and not found:
        parser.error("torch finds no CUDA GPU: run on a machine with one, or add --tiny")
    if device == "cpu" and not args.tiny:
        parser.error("rows from a CPU need --tiny, got --device cpu alone")
    if args.tiny and args.folder.resolve() == measure.FOLDER.resolve():
        parser.error(f"rows of --tiny do not belong in {args.folder}: name another --folder")
    if not args.minutes >= 0:
        parser.error(f"--minutes must be 0 or more, got {args.minutes:g}")
    commit = measure.commit() if args.commit is None else args.commit
    size = TINY if args.tiny else FULL
    rows = run_parts(device, size, args.minutes, args.folder, commit, args.parts)
    bad = [each for each in rows if each["verdict"] in ("outside", "failed")]
    wrong = [each for each in bad if each["part"] == "correctness"]
    print(f"{len(wrong)} checks fail, {len(bad) - len(wrong)} measures fail or miss their bounds")
    for each in bad:
        show(each)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
