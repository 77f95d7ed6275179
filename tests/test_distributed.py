"""Two processes against one: the same masks, loss and gradients (a host without BatchNorm)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from masksd import CrossModalDistill, CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig
from tests.processes import leave
from tests.triples import make_batch, make_triple

WORLD = 2


LABELLED = torch.tensor([True, False, False, False])  # the second process has none


HALF = MaskingConfig(ratio=0.5)
TAUGHT = DistillConfig(image=HALF, text=HALF, seed=5)  # with a larger teacher too
CASES = [
    (DistillConfig(image=HALF, text=HALF), None),
    (TAUGHT, LABELLED),
    (DistillConfig(image=HALF, text=HALF, target="teacher", teacher_decay=0.5), LABELLED),
    (DistillConfig.preset("maskris"), None),
    (DistillConfig.preset("amlris-paper"), None),  # the plain pass runs no backward
]


def make_wrapper(config: DistillConfig) -> nn.Module:
    sd = CrossModalMaskedSelfDistill(*make_triple(batch_norm=False), config).double()
    return CrossModalDistill(sd, make_triple(seed=4)).double() if config == TAUGHT else sd


def two_steps(module, sd, images, tokens, target, labelled=None):
    masks = []
    for _ in range(2):
        sd.zero_grad()
        out = module(images.double(), tokens, target=target, labelled=labelled)
        out.loss.backward()
        masks.append(out.masks["lmvsd"])
    gradients = {name: p.grad for name, p in sd.named_parameters() if p.grad is not None}
    return masks, gradients


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    half = slice(rank * 2, rank * 2 + 2)
    batch = [part[half] for part in make_batch(batch=4)]
    found = []
    for config, labelled in CASES:
        sd = make_wrapper(config)
        # find_unused_parameters=False: every parameter that takes part does so in every step.
        module = DistributedDataParallel(sd)
        flags = None if labelled is None else labelled[half]
        found.append(two_steps(module, sd, *batch, flags))
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=WORLD)
    runs = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for number, (config, labelled) in enumerate(CASES):
        sd = make_wrapper(config)
        masks, gradients = two_steps(sd, sd, *make_batch(batch=4), labelled)
        halves = [run[number] for run in runs]
        for step in range(2):
            assert torch.equal(masks[step], torch.cat([half[0][step] for half in halves]))
        assert halves[0][1].keys() == gradients.keys()
        for name, gradient in gradients.items():
            for _, of_rank in halves:
                torch.testing.assert_close(of_rank[name], gradient, rtol=1e-9, atol=1e-12)
