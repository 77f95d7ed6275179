from __future__ import annotations

import copy
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksd import (
    CrossModalDistill,
    CrossModalMaskedSelfDistill,
    DistillConfig,
    MaskingConfig,
    TokenMask,
)
from masksd.hosts import cris

EXAMPLE = Path(__file__).parents[1] / "examples" / "cris_integration.py"


def load_example() -> ModuleType:
    name = "cris_integration"  # in sys.modules, so that its classes pickle
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def new_host(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    host: nn.Module = load_example().StandIn(width=8)
    return host


def batch(samples: int = 4, size: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    made: tuple[Tensor, Tensor, Tensor] = load_example().make_batch(samples, size, 9)
    return made


def wrap(host: nn.Module, config: DistillConfig | None = None) -> CrossModalMaskedSelfDistill:
    return CrossModalMaskedSelfDistill.wrap(host, config)


ALWAYS = DistillConfig(  # masks words in every step, which the default's rounding does not
    text=MaskingConfig(ratio=0.5, rounding="nearest")
)


def hooks(host: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host.modules())


def test_recognised_by_structure() -> None:
    assert cris.recognise(new_host())
    assert not cris.recognise(nn.Sequential(nn.Linear(2, 2)))
    for part in ("neck", "decoder", "proj"):
        host = new_host()
        delattr(host, part)
        assert not cris.recognise(host)


def test_eval_is_the_host_and_its_keys_are_its_own() -> None:
    host = new_host()
    before = {key: value.clone() for key, value in host.state_dict().items()}
    images, tokens, _ = batch()
    bare = host.eval()(images, tokens)
    sd = wrap(host).eval()
    assert torch.equal(sd(images, tokens), bare)
    assert torch.equal(sd(img=images, word=tokens), bare)
    assert list(host.state_dict()) == list(before)
    assert all(torch.equal(host.state_dict()[key], value) for key, value in before.items())


def test_the_plain_pass_is_the_hosts_own() -> None:
    """Loss, output, random stream and BatchNorm, although two masked passes come after."""
    host = new_host().train()
    twin = copy.deepcopy(host)
    sd = wrap(host)
    images, tokens, masks = batch()
    torch.manual_seed(3)
    predicted, truth, loss = twin(images, tokens, masks)
    torch.manual_seed(3)
    out = sd(images, tokens, masks)
    assert torch.equal(out.losses["seg"], loss)
    assert torch.equal(out.host_output[0], predicted)
    assert torch.equal(out.host_output[1], truth)
    assert torch.equal(out.logits, predicted)
    assert out.logits.requires_grad
    for (name, ours), theirs in zip(host.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert {"backbone.visual.bn1.running_mean", "neck.norm.running_var"} <= {
        name for name, value in host.named_buffers() if value.ne(0).any()
    }


def test_arguments_may_be_named() -> None:
    images, tokens, masks = batch()
    losses = []
    for named in (False, True):
        sd = wrap(new_host(), ALWAYS)
        torch.manual_seed(3)
        given = {"word": tokens, "mask": masks}
        losses.append((sd(images, **given) if named else sd(images, *given.values())).loss)
    assert torch.equal(*losses)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_masked_pass_is_the_whole_host_run_with_tokens_replaced(modality: str) -> None:
    """Against a host that is run from the start with the embedding edited by hand."""
    host = new_host().eval()
    twin = copy.deepcopy(host)
    segmenter = cris.segmenter(host)
    images, tokens, _ = batch()
    with torch.no_grad():
        plain = segmenter.plain(images, tokens)
        grid = plain.image.grid
        assert grid == (4, 4)
        count = 16 if modality == "image" else tokens.shape[1]
        mask = torch.rand(4, count, generator=torch.Generator().manual_seed(0)) > 0.5
        token = torch.randn(segmenter.taps[modality].width)
        if modality == "image":
            found = segmenter.masked(plain, image=TokenMask(mask, token, grid))
            where = F.interpolate(mask.float().unflatten(1, grid)[:, None], (32, 32)) > 0.5
            module, value = twin.backbone.visual.avgpool, token[:, None, None]
        else:
            found = segmenter.masked(plain, text=TokenMask(mask, token))
            where, module, value = mask[..., None], twin.backbone.token_embedding, token
        module.register_forward_hook(lambda _, __, output: torch.where(where, value, output))
        torch.testing.assert_close(found, twin(images, tokens))
        assert not torch.allclose(found, plain.logits)


@pytest.mark.parametrize(("modality", "method"), [("image", "text"), ("text", "image")])
def test_what_is_not_masked_is_not_computed_again(modality: str, method: str) -> None:
    host = new_host().eval()
    segmenter = cris.segmenter(host)
    images, tokens, _ = batch()
    plain = segmenter.plain(images, tokens)
    calls = []
    other = host.backbone.visual if method == "image" else host.backbone.transformer
    other.register_forward_hook(lambda *_: calls.append(method))
    width = segmenter.taps[modality].width
    count, grid = (16, (4, 4)) if modality == "image" else (tokens.shape[1], None)
    mask = TokenMask(torch.ones(4, count, dtype=torch.bool), torch.zeros(width), grid)
    segmenter.masked(plain, **{modality: mask})
    assert calls == []


def test_features_for_relevance() -> None:
    host = new_host().eval()
    images, tokens, _ = batch()
    plain = cris.segmenter(host).plain(images, tokens)
    maps = host.backbone.encode_image(images)
    _, sentence = host.backbone.encode_text(tokens)
    assert plain.image.local is not None
    assert plain.text.local is not None
    assert torch.equal(plain.image.local[:, 5], maps[-1][:, :, 1, 1])
    assert torch.equal(plain.image.pooled, plain.image.local.mean(1))
    assert torch.equal(plain.text.pooled, sentence)
    end = tokens.argmax(1)
    torch.testing.assert_close(plain.text.local[torch.arange(4), end], sentence)
    assert plain.text.valid.tolist() == [[False, True, True, True] + [False] * 5] * 4


def test_it_learns_from_a_larger_one() -> None:
    """Patches and words carry their gradient, with low memory too."""
    images, tokens, masks = batch(2)
    gradients = []
    for low_memory in (False, True):
        host, teacher = new_host(), new_host(seed=1)
        sd = wrap(host, DistillConfig(image=None, text=None, low_memory=low_memory))
        out = CrossModalDistill(sd.train(), teacher)(images, tokens, masks)
        assert set(out.losses) == {"seg", "relation", "channel"}
        out.loss.backward()
        gradients.append({name: p.grad for name, p in host.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4)
    assert gradients[0]["backbone.text_projection"].abs().sum() > 0


def test_both_tokens_learn_and_the_checkpoint_stays_the_hosts() -> None:
    host = new_host()
    sd = wrap(host, ALWAYS)
    images, tokens, masks = batch(8)
    parameters = [*host.parameters(), *sd.distill_parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    rows = []
    for step in range(30):
        out = sd(images, tokens, masks)
        optimizer.zero_grad()
        out.loss.backward()
        if step == 0:
            assert all(p.grad is not None and p.grad.any() for p in sd.distill_parameters())
        optimizer.step()
        rows.append({name: loss.item() for name, loss in out.losses.items()})
    assert all(rows[-1][name] < rows[0][name] for name in ("seg", "lmvsd", "vmlsd"))
    assert sd.unwrap() is host
    assert hooks(host) == 0
    fresh = new_host(seed=1)
    fresh.load_state_dict(host.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(images, tokens), host.eval()(images, tokens))


def test_pickled_and_copied() -> None:
    sd = wrap(new_host())
    images, tokens, masks = batch()
    expected = sd.preview(images, tokens, masks)
    for other in (pickle.loads(pickle.dumps(sd)), copy.deepcopy(sd)):
        found = other.preview(images, tokens, masks)
        assert all(torch.equal(found.losses[name], loss) for name, loss in expected.losses.items())
        assert other.segmenter.wrapped is not sd.segmenter.wrapped


def test_describe_says_what_is_reused() -> None:
    images, tokens, _ = batch()
    text = wrap(new_host()).describe(images, tokens)
    assert "enters at backbone.visual.avgpool (width 8)" in text
    assert "runs encode_text, neck, decoder and proj again; reuses the image's maps" in text


def test_truth_by_another_name_is_refused() -> None:
    sd = wrap(new_host())
    images, tokens, masks = batch()
    with pytest.raises(ValueError, match=r"call sd\(images, tokens, masks\), not sd"):
        sd(images, tokens, target=masks)


def no_stem(host: nn.Module) -> None:
    del host.backbone.visual.avgpool


def no_projection(host: nn.Module) -> None:
    del host.backbone.text_projection


def another_stem(host: nn.Module) -> None:
    host.backbone.visual.conv3 = nn.Identity()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_stem, "image tower Visual has no ResNet stem with conv3 and avgpool"),
        (no_projection, "backbone has no text_projection"),
        (another_stem, "backbone.visual.conv3 must be a Conv2d, got Identity"),
    ],
)
def test_a_host_that_is_not_quite_cris_is_left_untouched(spoil: object, words: str) -> None:
    host = new_host()
    assert callable(spoil)
    spoil(host)
    with pytest.raises(ValueError, match=words):
        cris.segmenter(host)
    assert hooks(host) == 0


def test_a_compiled_part_is_refused() -> None:
    host = new_host()
    host.neck = torch.compile(host.neck)
    with pytest.raises(ValueError, match="neck lies in a part of the host that is compiled"):
        cris.segmenter(host)
    assert hooks(host) == 0


def test_wrapping_twice_and_a_second_text_encoder_are_refused() -> None:
    host = new_host()
    with pytest.raises(ValueError, match="CRIS has its own: leave it out"):
        cris.segmenter(host, nn.Linear(2, 2))
    cris.segmenter(host)
    count = hooks(host)
    with pytest.raises(ValueError, match="avgpool is tapped already"):
        cris.segmenter(host)
    assert hooks(host) == count == 8  # two masks, three records, three cuts


@pytest.mark.slow
def test_the_example_runs() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), "--steps", "2", "--samples", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "reuses words and sentence" in run.stdout
    assert "step   1" in run.stdout
