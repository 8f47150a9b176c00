"""Painted episodes to be labelled: a box that goes right, the faster the more reward, in a colour of its own."""

from __future__ import annotations

import numpy as np
import torch

from vlp_gym.engine.tickets import Answer, FrameScore, Ticket
from vlp_gym.preferences.segment_store import SegmentStore

COLOURS = ((200, 60, 40), (40, 110, 200), (40, 160, 90), (190, 120, 20), (140, 70, 180), (90, 90, 90))


def painted_store(*, episodes=6, steps=20, length=8, size=48, every=1, keep_frames=True) -> SegmentStore:
    """Each step of episode k pays k + 1; there is a frame of every so many steps."""
    store = SegmentStore(length, frame_size=size if keep_frames else 0)
    for number in range(episodes):
        score = FrameScore(0.0, 0.5, None)
        for step in range(steps + 1):
            ticket = Ticket(0, number, step)
            if step % every == 0:
                frame = painted_frame(number, step, size)
                store.on_answer(Answer(ticket, score), frame[None], torch.full((1, 1, 2), float(number)))
            if step < steps:
                following = Ticket(0, number, step + 1)
                store.add(0, np.full(3, number), np.full(2, step), float(number + 1), following)
        store.end(0)
    return store


def painted_frame(number: int, step: int, size: int = 48):
    frame = np.full((size, size, 3), 235, np.uint8)
    frame[size * 3 // 4 :] = 190
    left = (step * (number + 1) + 2) % (size - size // 6)
    frame[size // 2 : size * 3 // 4, left : left + size // 6] = COLOURS[number % len(COLOURS)]
    return frame
