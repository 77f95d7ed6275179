"""Small hosts with the shapes of public ones, and what a user writes to wrap each.

Nothing here is copied: each is built from how its original is called and what it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksd import Taps

C, VOCABULARY, LENGTH = 12, 40, 6


def words_above_two(ids: Tensor) -> Tensor:
    """Real words of these hosts: 0 is padding, 1 and 2 start and end a sentence."""
    return ids > 2


def mixed(maps: Tensor, words: Tensor) -> Tensor:
    """Let words, averaged, choose among the channels of a map."""
    return (maps * words.mean(1)[:, :, None, None]).tanh() + maps


class Queries(nn.Module):
    """As ReLA: lists of dictionaries come in, a dictionary of losses goes out in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 8, 8)
        self.bert = nn.Embedding(VOCABULARY, C)
        self.queries = nn.Parameter(torch.randn(5, C))
        self.predictor = QueryHead()

    def forward(self, batched: list[dict[str, Tensor]]) -> Any:
        sizes = [each["image"].shape[-2:] for each in batched]
        height, width = (max(size[side] for size in sizes) for side in (0, 1))
        images = torch.stack(
            [
                F.pad(each["image"], (0, width - w, 0, height - h))
                for each, (h, w) in zip(batched, sizes, strict=True)
            ]
        )
        ids = torch.cat([each["lang_tokens"] for each in batched])
        found = self.predictor(mixed(self.stem(images), self.bert(ids)), self.queries)
        if not self.training:
            masks = (found["scores"][:, :, None, None] * found["masks"]).sum(1)
            return [
                {"sem_seg": F.interpolate(mask[None, None], size)[0, 0]}
                for mask, size in zip(masks, sizes, strict=True)
            ]
        truth = torch.stack([each["gt"] for each in batched])[:, None]
        truth = F.adaptive_avg_pool2d(truth, found["masks"].shape[-2:])
        whole = (found["scores"][:, :, None, None] * found["masks"]).sum(1, keepdim=True)
        return {
            "loss_mask": F.binary_cross_entropy_with_logits(whole, truth),
            "loss_scores": found["scores"].square().mean(),
        }


class QueryHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(C, 1)

    def forward(self, maps: Tensor, queries: Tensor) -> dict[str, Tensor]:
        masks = torch.einsum("qc,bchw->bqhw", queries, maps)
        return {"masks": masks, "scores": self.score(queries)[:, 0].expand(len(maps), -1)}


class TwoVisionTowers(nn.Module):
    """As EVF-SAM: two image towers at two sizes, several sentences a picture, a loop at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.sam = nn.Sequential(nn.Conv2d(3, C, 8, 8), nn.Conv2d(C, C, 1))
        self.beit_patches = nn.Conv2d(3, C + 4, 2, 2)
        self.beit_words = nn.Embedding(VOCABULARY, C + 4)
        self.prompt = nn.Linear(C + 4, C)
        self.decoder = nn.Conv2d(C, 1, 1)

    def forward(self, images: Tensor, images_evf: Tensor, input_ids: Tensor, offset: Tensor) -> Any:
        maps = self.sam(images)
        number = torch.arange(len(images)).repeat_interleave(offset.diff())
        seen = self.beit_patches(images_evf[number]).flatten(2).mT  # once a sentence
        prompt = self.prompt(torch.cat([seen, self.beit_words(input_ids)], 1).tanh().mean(1))
        found = []
        for picture in range(len(images)):
            mine = prompt[offset[picture] : offset[picture + 1]]
            found.append(self.decoder(maps[picture] * mine[:, :, None, None] + maps[picture]))
        return {"pred_masks": [F.interpolate(each, scale_factor=8.0) for each in found]}


class Nested(NamedTuple):
    """Padded pictures, and where they are padding."""

    tensors: Tensor
    mask: Tensor


class OneTower(nn.Module):
    """As OneRef: patches and words in one sequence, pictures in an object, flat logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.words = nn.Conv2d(3, C, 8, 8), nn.Embedding(VOCABULARY, C)
        self.tower = nn.TransformerEncoderLayer(C, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(C, 1)

    def forward(self, img_data: Nested, text_data: Nested) -> tuple[Tensor, Tensor]:
        patches = self.patches(img_data.tensors).flatten(2).mT
        both = self.tower(torch.cat([patches, self.words(text_data.tensors)], 1))
        return both.mean(1), self.head(both[:, : patches.shape[1]])[..., 0]


class WordTable(nn.Module):
    """As BarLeRIa: another place for the mask in evaluation; its words are a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Conv2d(3, C, 8, 8)
        self.table = nn.Parameter(torch.randn(VOCABULARY, C))
        self.head = nn.Conv2d(C, 3, 1)

    def forward(self, img: Tensor, word: Tensor) -> tuple[Tensor, ...]:
        logits = self.head(mixed(self.visual(img), F.embedding(word, self.table)))
        return (logits.detach().sigmoid(), logits) if self.training else (logits,)


class Loop(nn.Module):
    """As several codebases: everything runs sample by sample."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.words = nn.Conv2d(3, C, 8, 8), nn.Embedding(VOCABULARY, C)
        self.head = nn.Conv2d(C, 1, 1)

    def forward(self, images: list[Tensor], ids: Tensor) -> list[Tensor]:
        return [
            self.head(mixed(self.visual(image[None]), self.words(each[None])))[0]
            for image, each in zip(images, ids, strict=True)
        ]


class LookAlike(NamedTuple):
    """A host, how it is wrapped, and a call; ``hidden`` runs it with tokens replaced by hand."""

    make: Callable[[], nn.Module]
    taps: Callable[[], Taps]
    call: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    samples: int = 3


def pictures(side: int = 32, number: int = 3) -> Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(side))


def sentences(number: int = 3) -> Tensor:
    ids = torch.randint(3, VOCABULARY, (number, LENGTH), generator=torch.Generator().manual_seed(5))
    ids[:, 0], ids[:, -1] = 1, 2
    ids[0, 4:] = torch.tensor([2, 0])
    return ids


def truth(number: int = 3, side: int = 32) -> Tensor:
    drawn = torch.rand(number, side, side, generator=torch.Generator().manual_seed(6))
    return (drawn > 0.5).float()


def queries_taps() -> Taps:
    def whole(found: dict[str, Tensor]) -> Tensor:
        return (found["scores"][:, :, None, None] * found["masks"]).sum(1, keepdim=True)

    return Taps(
        image_embedding="stem",
        text_embedding="bert",
        images=None,
        tokens=lambda batched: torch.cat([each["lang_tokens"] for each in batched]),
        valid=words_above_two,
        logits=("predictor", whole),
        loss=lambda losses: sum(losses.values()),
    )


def two_towers_taps() -> Taps:
    return Taps(
        image_embedding=("sam.0", "beit_patches"),
        text_embedding="beit_words",
        images="images",
        tokens="input_ids",
        valid=words_above_two,
        logits=lambda out: torch.cat(out["pred_masks"]),
        pictures=lambda images, evf, ids, offset: torch.arange(len(images)).repeat_interleave(
            offset.diff()
        ),
        image_only=("sam.1",),
    )


def one_tower_taps() -> Taps:
    return Taps(
        image_embedding="patches",
        text_embedding="words",
        images="img_data:tensors",
        tokens="text_data:tensors",
        valid=words_above_two,
        logits=("head", lambda out: out[..., 0].unflatten(1, (4, 4))),
    )


def word_table_taps() -> Taps:
    return Taps(
        image_embedding="visual",
        text_embedding="table",
        valid=words_above_two,
        logits=lambda out: out[-1][:, 2:],
    )


def loop_taps() -> Taps:
    return Taps(
        image_embedding="visual",
        text_embedding="words",
        images=None,
        valid=words_above_two,
        logits=torch.stack,
        in_parts=True,
    )


def batched() -> tuple[Any, ...]:
    return (
        [
            {"image": image, "lang_tokens": ids[None], "gt": mask}
            for image, ids, mask in zip(pictures(), sentences(), truth(), strict=True)
        ],
    )


def nested() -> tuple[Any, ...]:
    images, ids = pictures(), sentences()
    return Nested(images, images[:, 0] != images[:, 0]), Nested(ids, ids == 0)


LOOK_ALIKES = {
    "ReLA": LookAlike(Queries, queries_taps, lambda: (batched(), {})),
    "EVF-SAM": LookAlike(
        TwoVisionTowers,
        two_towers_taps,
        lambda: (
            (pictures(number=2), pictures(16, 2), sentences(3), torch.tensor([0, 2, 3])),
            {},
        ),
    ),
    "OneRef": LookAlike(OneTower, one_tower_taps, lambda: (nested(), {})),
    "BarLeRIa": LookAlike(WordTable, word_table_taps, lambda: ((pictures(), sentences()), {})),
    "a loop": LookAlike(Loop, loop_taps, lambda: ((list(pictures()), sentences()), {})),
}
