"""VLP and SPUR at their published sizes: forward passes, training steps and the memory that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.gpu.devices import forget_peak, millions, milliseconds, peak_mib
from tests.gpu.models import SENTENCE, spur, vlp
from tests.gpu.report import Figure, of_many
from tests.gpu.sizes import Size
from vlp_gym.objectives.preference import vlp_loss
from vlp_gym.objectives.spur import spur_loss


def training(size: Size, device: str) -> Iterator[Figure]:
    """Both models, one after the other."""
    model = vlp(size, device)
    yield from _measured("VLP", model, lambda: vlp_step(model, size, device), size, device)
    del model
    model = spur(size, device)
    yield from _measured("SPUR", model, lambda: spur_step(model, size, device), size, device)


def _measured(name: str, model: Any, loss: Callable[[], Tensor], size: Size, device: str) -> Iterator[Figure]:
    """Forward passes of whole windows, then steps of AdamW on what is trained."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    yield Figure(f"{name}: weights", millions(model.parameters()), "million")
    yield Figure(f"{name}: weights that are trained", millions(trained), "million")
    windows = f"{size.windows} windows of {model.window} frames"
    frames = pixels(size.windows * model.window, model.frame_size[0], device)
    mask = torch.ones(size.windows, model.window, dtype=torch.bool, device=device)

    @torch.inference_mode()
    def forward() -> None:
        with torch.autocast(device, torch.bfloat16):
            tokens = model.encode_frames(frames).unflatten(0, (size.windows, model.window))
            model.score(tokens, model.encode_text([SENTENCE] * size.windows), mask)

    model.eval()
    forget_peak(device)
    yield of_many(f"{name}: forward, {windows}", milliseconds(forward, size.steps, device), "ms")
    yield Figure(f"{name}: peak memory, forward", peak_mib(device), "MiB")
    model.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    losses = []

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())

    forget_peak(device)
    before = [weight.detach().clone() for weight in trained[-2:]]
    yield of_many(f"{name}: training step, {size.pairs} pairs", milliseconds(step, size.steps, device), "ms")
    yield Figure(f"{name}: peak memory, training step", peak_mib(device), "MiB")
    moved = sum(not torch.equal(old, new) for old, new in zip(before, trained[-2:], strict=True))
    yield Figure(f"{name}: loss after {len(losses)} steps", losses[-1], at_least=0.0)
    yield Figure(f"{name}: weights of the last layer that a step moves", moved, at_least=2)


def pixels(count: int, side: int, device: str) -> Tensor:
    """Noise, uint8 ``[count, side, side, 3]``."""
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, device=device)


def vlp_step(model: Any, size: Size, device: str) -> Tensor:
    """VLP's loss (eq. 4) on pairs of noise, with one foreign sentence and one foreign video each."""
    shape = (size.pairs, 2, model.window)
    tokens = model.encode_frames(pixels(size.pairs * 2 * model.window, model.frame_size[0], device)).unflatten(0, shape)
    a, b = tokens.unbind(1)
    text = model.encode_text([f"{SENTENCE} {number}" for number in range(size.pairs)])
    mask = torch.ones(size.pairs, model.window, dtype=torch.bool, device=device)

    def score(video: Tensor, sentence: Tensor) -> Tensor:
        return model.score(video, sentence, mask).preference

    own, foreign = (score(a, text), score(b, text)), text.roll(1, 0)
    negative = score(a.roll(1, 0), text)
    ilp = (score(a, foreign), score(b, foreign))
    return vlp_loss((*own, 1.0), ilp, ((own[0], negative), (own[1], negative))).total


def spur_step(model: Any, size: Size, device: str) -> Tensor:
    """SPUR's loss on pairs of noise: preference of each pair, progress of both videos."""
    shape = (size.pairs, 2, model.window)
    tokens = model.encode_frames(pixels(size.pairs * 2 * model.window, model.frame_size[0], device)).unflatten(0, shape)
    text = model.encode_text([SENTENCE] * size.pairs)
    mask = torch.ones(size.pairs, model.window, dtype=torch.bool, device=device)
    progress_a, logit = model.pair_logits(tokens[:, 0], tokens[:, 1], text, mask, mask)
    progress = torch.stack([progress_a, model.progress_logits(tokens[:, 1], text, mask)], 1).sigmoid()
    target = torch.linspace(0, 1, model.window, device=device).expand_as(progress)
    return spur_loss(logit, torch.ones_like(logit), progress.float(), target).total
