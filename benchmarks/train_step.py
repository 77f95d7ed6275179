"""Time a training step and its memory: the host, three naive passes, two passes, and masksd.

    python -m benchmarks.train_step [--model clip_cris_vit_b16] [--batch 1] [--repeats 7]

Providers, paired in rounds:

- ``host``: the model and its segmentation loss;
- ``naive``: CM-MaskSD as three full passes, the same masks and losses as ``masksd``;
- ``two-pass``: a plain pass and its backward, then one pass with both masks and its backward;
- ``masksd``: ours, and its cheaper or smaller variants ``low_memory``, ``joint``, ``every 2`` (the
  mean of two steps), ``half batch``, ``layer N`` (the middle of the image tower).

First the script checks a triple's naive passes and ``low_memory`` against ``masksd`` (loss and
gradients), and two passes against one graph of both (loss). ``kept`` is the peak of the bytes that
autograd keeps, each storage once. With ``--rss``, ``peak`` is that of a process of its own that
takes two steps (on a GPU: the allocator's). Evaluation through the wrapper is timed against the
bare model. Rows are appended to ``benchmarks/results/train_step.csv``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import step_cost
from benchmarks.measure import append, environment, median_ratio, paired
from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig, Triple
from masksd import segmentation_loss as seg_loss
from masksd.kit.costs.kept import kept_activations
from masksd.models import create_model
from masksd.passes.truth import Truth
from masksd.tapping.embeddings import TokenMask

EVAL = ("host eval", "masksd eval")


class NaiveTriple(Triple):
    """Every masked pass runs the whole model again."""

    def masked(
        self, plain: Any, image: TokenMask | None = None, text: TokenMask | None = None, **_: Any
    ) -> Tensor:
        images, tokens, _ = plain.inputs
        with self.masking(image, text):
            return self.host(images, tokens)


class Setting:
    """A model, a batch, and the providers around them."""

    def __init__(self, name: str, batch: int, size: int | None, tokens: int, device: str) -> None:
        torch.manual_seed(0)
        options = {} if size is None else {"image_size": size}
        self.model = create_model(name, dropout=0.0, **options).to(device)
        self.triple = hasattr(self.model, "neck")
        self.device = device
        size = self.model.config.image_size
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(batch, 3, size, size, generator=generator).to(device)
        words = torch.randint(200, 400, (batch, tokens), generator=generator)
        end = self.model.config.end_token if self.triple else 102
        words[:, tokens * 2 // 3] = end
        words[:, tokens * 2 // 3 + 1 :] = 0
        words[:, 0] = 1 if self.triple else 101
        self.args: tuple[Tensor, ...] = (self.images, words.to(device))
        if not self.triple:
            self.args += ((self.args[1] > 0).long(),)
        self.truth = (torch.rand(batch, size, size, generator=generator) > 0.5).float().to(device)
        self.autocast: Callable[[], Any] = partial(
            torch.autocast, device, dtype=torch.bfloat16, enabled=device == "cuda"
        )

    def copied(self) -> Setting:
        """The same batch, and a copy of the model that may keep its wrapper."""
        copied = copy.copy(self)
        copied.model = copy.deepcopy(self.model)
        return copied

    def wrap(self, config: DistillConfig, kind: type = Triple) -> CrossModalMaskedSelfDistill:
        """Wrap the model, without the check of a first step, which is not to be timed."""
        if not self.triple:
            return CrossModalMaskedSelfDistill.wrap(self.model, config, check=False)
        model = self.model
        parts = model.encoder, model.neck, model.decoder
        sd = CrossModalMaskedSelfDistill(*parts, config, check=False).to(self.device)
        sd.segmenter.__class__ = kind
        return sd

    def host_step(self) -> None:
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        with self.autocast():
            loss = seg_loss(self.model(*self.args), self.truth)
        loss.backward()

    def step(self, config: DistillConfig, kind: type = Triple, steps: int = 1) -> Tensor:
        """Wrap, take steps, unwrap: a model takes one wrapper at a time."""
        sd = self.wrap(config, kind)
        for _ in range(steps):
            out = self.take(sd)
        sd.unwrap()
        return out.loss.detach()

    def take(self, sd: Any, **options: Any) -> Any:
        """Take a step with a wrapper, which may be compiled; ``options`` go to its call."""
        sd.zero_grad(set_to_none=True)
        with self.autocast():
            out = sd(*self.args, target=self.truth, **options)
        out.loss.backward()
        return out

    def gradients(self) -> Tensor:
        """The gradients of the last step, in one row."""
        found = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.cat([gradient.flatten() for gradient in found])

    def two_pass(self, config: DistillConfig) -> Tensor:
        """A plain pass and its backward, then a masked one and its backward, as MaskRIS does."""
        sd = self.wrap(config)
        sd.zero_grad(set_to_none=True)
        with self.autocast():
            passes = sd._passes
            main = passes.main(self.args, {}, Truth(self.truth), sd.step)
        (main.losses["seg"] + passes.zero_of_unused(main)).backward()
        detached = main._replace(plain=main.plain._replace(logits=main.plain.logits.detach()))
        with self.autocast():
            result = passes.branch("joint", detached)
            loss = passes.branches["joint"].weight * result.loss
        loss.backward()
        sd.unwrap()
        return (main.losses["seg"] + loss).detach()

    def evaluate(self, run: Callable[..., Any]) -> None:
        with torch.inference_mode(), self.autocast():
            run(*self.args)

    def providers(self) -> dict[str, tuple[Callable[[], Any], int]]:
        """What to run, and how many steps that is, by name."""
        exact = DistillConfig()
        seldom = MaskingConfig(every=2)
        half = MaskingConfig(samples=0.5)
        runs: dict[str, tuple[Callable[[], Any], int]] = {
            "host": (self.host_step, 1),
            "masksd": (partial(self.step, exact), 1),
            "masksd low_memory": (partial(self.step, DistillConfig(low_memory=True)), 1),
            "masksd joint": (partial(self.step, DistillConfig(joint=True)), 1),
            "masksd every 2": (partial(self.step, DistillConfig(seldom, seldom), steps=2), 2),
        }
        if len(self.images) > 1 and self.triple:
            runs["masksd half batch"] = (partial(self.step, DistillConfig(half, half)), 1)
        if self.triple:
            layers = self.model.config.vision_layers // 2
            deeper = DistillConfig(image=MaskingConfig(layer=layers))
            runs["naive"] = (partial(self.step, exact, NaiveTriple), 1)
            runs["two-pass"] = (partial(self.two_pass, DistillConfig(joint=True)), 1)
            runs[f"masksd layer {layers}"] = (partial(self.step, deeper), 1)
        return runs

    def check(self) -> None:
        """Raise unless naive passes and low memory give the loss and gradients of masksd."""
        if not self.triple:
            return
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        found = {}
        for name, run in (
            ("masksd", partial(self.step, DistillConfig())),
            ("naive", partial(self.step, DistillConfig(), NaiveTriple)),
            ("low memory", partial(self.step, DistillConfig(low_memory=True))),
        ):
            found[name] = run(), self.gradients()
            for key, buffer in self.model.named_buffers():
                buffer.copy_(buffers[key])
        loss, gradients = found["masksd"]
        bound = 1e-4 if self.device == "cpu" else 2e-2  # float32, or bfloat16 autocast
        for name, (other, others) in found.items():
            error = (others - gradients).norm() / gradients.norm()
            if abs(other - loss) > bound * abs(loss) or error > 10 * bound:
                raise ValueError(f"{name} is another step: loss {other} for {loss}, {error:.2e}")
        joint = self.step(DistillConfig(joint=True))
        two = self.two_pass(DistillConfig(joint=True))
        if abs(two - joint) > bound * abs(joint):
            raise ValueError(f"two passes are another step than one graph: {two} for {joint}")


def share_of_the_rest(setting: Setting) -> float:
    model = copy.deepcopy(setting.model).to("meta")
    return step_cost.share_of_the_rest(model, *(x.to("meta") for x in setting.args))


def kept_bytes(setting: Setting, run: Callable[[], Any]) -> int:
    there = [*setting.model.parameters(), *setting.model.buffers(), *setting.args, setting.truth]
    with kept_activations(there) as count:
        run()
    return count.peak


def kept_by_encoder(setting: Setting) -> int:
    encoder, (images, tokens) = setting.model.encoder, setting.args
    encoded = []

    def run() -> None:
        with setting.autocast():
            encoded.append((encoder.encode_image(images), encoder.encode_text(tokens)))

    return kept_bytes(setting, run)


def peak_memory(args: argparse.Namespace, provider: str) -> int:
    """Peak bytes of a process that takes two steps."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--only", provider]
    for name in ("model", "batch", "size", "tokens", "device"):
        if getattr(args, name) is not None:
            command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def only(setting: Setting, provider: str) -> None:
    run, _ = setting.providers()[provider]
    for _ in range(2):
        run()
    if setting.device == "cuda":
        print(torch.cuda.max_memory_allocated())
    else:
        # not ru_maxrss, which a process inherits from its parent
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024)


def rows_of(args: argparse.Namespace, setting: Setting) -> list[dict[str, Any]]:
    setting.check()
    providers = setting.providers()
    timed = {name: run for name, (run, _) in providers.items()}
    seconds = paired(timed, args.repeats, args.device, progress="train")
    seconds = {n: [s / providers[n][1] for s in times] for n, times in seconds.items()}
    kept = {name: kept_bytes(setting, run) for name, run in timed.items()}
    peaks = {name: peak_memory(args, name) if args.rss else "" for name in timed}

    sd = setting.wrap(DistillConfig()).eval()
    bare = copy.deepcopy(setting.model).eval()
    evals = {
        "host eval": partial(setting.evaluate, bare),
        "masksd eval": partial(setting.evaluate, sd),
    }
    seconds |= paired(evals, args.eval_repeats, args.device, progress="evaluate")
    sd.unwrap()

    share = share_of_the_rest(setting) if setting.triple else ""
    kept_share = 1 - kept_by_encoder(setting) / kept["host"] if setting.triple else ""
    rows = []
    for name, times in seconds.items():
        host = seconds["host eval" if name in EVAL else "host"]
        rows.append(
            {
                "model": args.model,
                "image_size": setting.images.shape[-1],
                "batch": args.batch,
                "tokens": args.tokens,
                "precision": "bf16 autocast" if args.device == "cuda" else "fp32",
                "provider": name,
                "seconds": round(statistics.median(times), 6),
                "to_host": round(median_ratio(times, host), 4),
                "to_naive": round(median_ratio(times, seconds["naive"]), 4)
                if "naive" in seconds and name not in EVAL
                else "",
                "kept_mb": round(kept[name] / 1e6, 3) if name in kept else "",
                "kept_to_host": round(kept[name] / kept["host"], 4) if name in kept else "",
                "peak_mb": round(peaks[name] / 1e6, 1) if peaks.get(name) else "",
                "d": round(share, 4) if share else "",
                "d_kept": round(kept_share, 4) if kept_share else "",
                "rounds": len(times),
                **environment(args.device),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="clip_cris_vit_b16")
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--size", type=int, help="pixels; default: the model's own")
    parser.add_argument("--tokens", type=int, default=17)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of a step")
    parser.add_argument("--eval-repeats", type=int, default=15)
    parser.add_argument("--rss", action="store_true", help="measure each in a process of its own")
    parser.add_argument("--only", help="take two steps of one provider and print the peak memory")
    args = parser.parse_args()
    setting = Setting(args.model, args.batch, args.size, args.tokens, args.device)
    if args.only:
        only(setting, args.only)
        return
    print(environment(args.device))
    rows = rows_of(args, setting)
    print(f"{'provider':<20}{'seconds':>10}{'x host':>9}{'x naive':>9}{'kept':>9}{'peak MB':>10}")
    for row in rows:
        print(
            f"{row['provider']:<20}{row['seconds']:>10.4f}{row['to_host']:>9.3f}"
            f"{row['to_naive']!s:>9}{row['kept_to_host']!s:>9}{row['peak_mb']!s:>10}"
        )
    append("train_step", rows)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
