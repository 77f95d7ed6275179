"""Train, score and try a model of your own with the kit's commands.

python examples/own_model.py train --model my_model
python examples/own_model.py demo
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from custom_model import MyModel

import masksd
from masksd.kit.cli import main
from masksd.kit.sources import WordsBeforeEnd
from masksd.models import register_model


@dataclasses.dataclass(frozen=True)
class MyConfig:
    """What a checkpoint keeps to build the model again: plain values."""

    vocab_size: int = 512
    max_length: int = 32
    end_token: int = 511
    image_size: int = 64
    width: int = 64


class ModelOfTheKit(MyModel):
    """Your model and the three attributes that the kit asks for."""

    takes_attention_mask = True  # forward(images, tokens, mask); False: forward(images, tokens)

    def __init__(self, config: MyConfig) -> None:
        super().__init__(config.width, words=config.vocab_size)
        self.config = config
        self.taps = masksd.Taps("patch_embed", "words", valid=WordsBeforeEnd(config.end_token))


@register_model
def my_model(pretrained: bool = False, **options: Any) -> ModelOfTheKit:
    """Called with the vocabulary of the tokenizer, and with what the options set."""
    return ModelOfTheKit(MyConfig(**options))


if __name__ == "__main__":
    sys.exit(main())
