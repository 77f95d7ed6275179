"""One model in several threads and copies: a pass belongs to the thread that runs it."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn

import masksd
from masksd import CrossModalMaskedSelfDistill
from masksd.tapping.hooks import Hook
from tests.test_check import TAPS, Host, inputs
from tests.triples import make_batch, make_triple

wrap = CrossModalMaskedSelfDistill.wrap


def hooks(model: nn.Module) -> list[object]:
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


def test_inference_in_another_thread_is_never_masked():
    images, ids, target = inputs()
    host = Host().eval()
    with torch.no_grad():
        wanted = host(images, ids)
    sd = wrap(host.train(), taps=TAPS)
    stop, wrong, calls = threading.Event(), [], 0

    def infer() -> None:
        nonlocal calls
        with torch.no_grad():
            while not stop.is_set():
                calls += 1
                if not torch.equal(host(images, ids), wanted):
                    wrong.append(calls)

    thread = threading.Thread(target=infer)
    thread.start()
    try:
        for _ in range(50):
            sd(images, ids, target=target)
    finally:
        stop.set()
        thread.join()
    assert calls > 50
    assert wrong == []


def test_a_second_training_thread_is_refused():
    images, ids, target = inputs()
    host = Host()
    sd = wrap(host, taps=TAPS)
    errors: list[Exception] = []

    def step() -> None:
        try:
            sd(images, ids, target=target)
        except RuntimeError as error:
            errors.append(error)

    def meanwhile(*_: object) -> None:
        if not errors:
            thread = threading.Thread(target=step)
            thread.start()
            thread.join()

    handle = host.head.register_forward_hook(meanwhile)
    sd(images, ids, target=target)
    handle.remove()
    assert [str(error).partition(":")[0] for error in errors] == [
        "another thread is in a training step of this wrapper"
    ]
    sd(images, ids, target=target)  # and the first one goes on


def test_a_copy_of_a_wrapped_host_is_clean():
    images, ids, target = inputs()
    host = Host()
    sd = wrap(host, taps=TAPS)
    sd(images, ids, target=target)
    clone = copy.deepcopy(host)
    assert not any(isinstance(hook, Hook) for hook in hooks(clone))
    with torch.no_grad():
        assert torch.equal(clone.eval()(images, ids), host.eval()(images, ids))
    again = wrap(clone.train(), taps=TAPS)  # and can be wrapped
    again(images, ids, target=target).loss.backward()
    assert again.unwrap() is clone
    assert hooks(clone) == []
    assert masksd.release(copy.deepcopy(host)) is not None
    assert hooks(masksd.release(copy.deepcopy(host))) == []


def test_an_average_of_a_wrapped_host_is_a_plain_model():
    images, ids, target = inputs()
    host = Host()
    sd = wrap(host, taps=TAPS)
    average = torch.optim.swa_utils.AveragedModel(host, use_buffers=True)
    out = sd(images, ids, target=target)
    average.update_parameters(host)
    assert isinstance(average(images, ids), Tensor)
    assert out.masks["lmvsd"].any()


@pytest.mark.parametrize("first", ["wrapper", "host"])
def test_a_copy_of_the_wrapper_masks(first):
    images, tokens, target = make_batch()
    encoder, neck, decoder = make_triple()
    sd = CrossModalMaskedSelfDistill(encoder, neck, decoder)
    both = {"wrapper": [sd, encoder], "host": [encoder, sd]}[first]
    clone = next(part for part in copy.deepcopy(both) if part is not None and hasattr(part, "step"))
    assert clone.segmenter.encoder is not encoder
    got, wanted = (each(images, tokens, target=target) for each in (clone, sd))
    assert torch.equal(got.loss, wanted.loss)
    clone.unwrap()
    assert len(hooks(encoder)) == 2
    assert hooks(clone.segmenter.encoder if clone.segmenter else make_triple()[0]) == []


def test_a_pickled_wrapper_masks():
    images, tokens, target = make_batch()
    sd = CrossModalMaskedSelfDistill(*make_triple())
    clone = pickle.loads(pickle.dumps(sd))
    got, wanted = (each(images, tokens, target=target) for each in (clone, sd))
    assert torch.equal(got.loss, wanted.loss)
