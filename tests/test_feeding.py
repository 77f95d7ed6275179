"""What a model is fed, and its logits of one or two classes."""

from __future__ import annotations

import pytest
import torch

from masksd import DistillConfig
from masksd.kit.checkpoints import Checkpoint
from masksd.kit.config import TrainConfig
from masksd.kit.data.text.tokenizers import load_tokenizer
from masksd.kit.data.transforms import normalize
from masksd.kit.feeding import foreground_logits, model_inputs, predict_logits
from masksd.kit.sources import WordsBeforeEnd, build_model, wrap_model
from masksd.models import create_model


@pytest.fixture(scope="module")
def cris() -> Checkpoint:
    checkpoint = build_model(TrainConfig())
    return checkpoint._replace(model=checkpoint.model.eval())


@pytest.fixture(scope="module")
def lavt(cris: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "circle"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    model = create_model("lavt_tiny").eval()
    return cris._replace(model=model, tokenizer=load_tokenizer(folder, 9))


def a_batch(checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator).to(torch.uint8)
    texts = ("red circle", "red red red circle")
    return images, torch.stack([checkpoint.tokenizer.encode(text) for text in texts])


def test_a_model_that_finds_the_end_token_gets_no_mask(cris: Checkpoint) -> None:
    images, tokens = a_batch(cris)
    inputs = model_inputs(cris, images, tokens)
    assert len(inputs) == 2
    assert torch.equal(inputs[0], normalize(images, cris.config.mean, cris.config.std))
    assert torch.equal(inputs[1], tokens)
    with torch.no_grad():
        assert torch.equal(predict_logits(cris, images, tokens), cris.model(*inputs))


def test_lavt_gets_a_mask_and_gives_two_classes(lavt: Checkpoint) -> None:
    images, tokens = a_batch(lavt)
    inputs = model_inputs(lavt, images, tokens)
    assert inputs[2].tolist() == [[1] * 4 + [0] * 5, [1] * 6 + [0] * 3]
    with torch.no_grad():
        two = lavt.model(*inputs)
        one = predict_logits(lavt, images, tokens)
    assert two.shape == (2, 2, 64, 64)
    assert one.shape == (2, 1, 64, 64)
    assert torch.allclose(one.sigmoid(), two.softmax(dim=1)[:, 1:], atol=1e-6)


def test_padding_does_not_matter_to_lavt(lavt: Checkpoint) -> None:
    images, tokens = a_batch(lavt)
    other = torch.where(lavt.tokenizer.attention_mask(tokens) == 1, tokens, 1)
    assert not torch.equal(other, tokens)
    with torch.no_grad():
        expected = predict_logits(lavt, images, tokens)
        assert torch.allclose(predict_logits(lavt, images, other), expected, atol=1e-5)


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 1 or 2, h, w\), a tensor; got \(1, 3, 4, 4\)"):
        foreground_logits(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("model", ["clip_cris_tiny", "lavt_tiny"])
def test_a_sentence_without_a_word_and_an_empty_mask_stay_finite(model: str) -> None:
    """In evaluation too, where attention over nothing is NaN."""
    checkpoint = build_model(TrainConfig(model=model))
    sd = wrap_model(checkpoint.model, DistillConfig(), checkpoint.tokenizer)
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    inputs = model_inputs(checkpoint, images, torch.zeros(2, 17, dtype=torch.int64))
    out = sd.train()(*inputs, target=torch.zeros(2, 64, 64))
    out.loss.backward()
    gradients = [p.grad for p in sd.parameters() if p.grad is not None]
    assert all(each.isfinite().all() for each in [out.loss, *gradients])
    with torch.no_grad():
        assert sd.eval()(*inputs).isfinite().all()


def test_words_are_those_before_the_first_end() -> None:
    valid = WordsBeforeEnd(9)(torch.tensor([[8, 5, 6, 9, 0], [8, 5, 9, 9, 9]]))
    assert valid.tolist() == [[False, True, True, False, False], [False, True] + 3 * [False]]
