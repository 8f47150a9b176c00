"""Hand-written experts of the Fetch tasks. Each is a function of the observation alone, without memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Observation = Mapping[str, Floats]
"""As `make_fetch` says."""
Expert = Callable[[Observation], Floats]
"""Observation -> action float ``[4]``: hand x, y, z in [-1, 1], and fingers from -1, closed, to 1, open."""

GAIN = 10.0  # action per metre that the hand is away from where it should be
STEP_S = 0.04  # seconds of an environment step; the observation's speeds are metres per step
ABOVE = 0.07  # metres above the object at which the hand goes over it
HAND_SPEED = 0.58  # metres per second of a hand whose action is 1 along one axis
FRICTION = 0.8  # metres per second squared by which a sliding puck slows down, measured
KICK = 0.15  # metres per second that one contact adds to the puck: a harder one leaves the hand's side at an angle
OPEN, CLOSED = 1.0, -1.0
FLAT, UP = np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])


def reach(observation: Observation) -> Floats:
    """Go straight to the goal."""
    return _towards(observation["achieved_goal"], observation["desired_goal"])


def push(observation: Observation) -> Floats:
    """Go over the block to its far side from the goal, down, and push; once it is there, stay."""
    hand, block, goal = observation["observation"][:3], observation["achieved_goal"], observation["desired_goal"]
    left, ahead = _direction((goal - block) * FLAT)
    if left < 0.02:
        return _towards(hand, hand)
    behind = block - 0.07 * ahead
    along, aside = _place(hand - block, ahead)
    if along < -0.02 and np.linalg.norm(aside) < 0.02 and hand[2] < block[2] + 0.03:
        return _towards(hand, block + min(0.03, left) * ahead)
    return _get_behind(hand, block, behind, apart=0.09, near=0.02)


def slide(observation: Observation) -> Floats:
    """Get behind the puck and push it with short contacts, until it is fast enough to slide to the goal.

    A contact gives the puck a speed along the normal of the hand's side, which is seldom the direction wanted. So the
    next contact is planned from what is missing: the difference of the speed that leads to the goal and the puck's own.
    """
    state, puck, goal = observation["observation"], observation["achieved_goal"], observation["desired_goal"]
    hand, speed = state[:3], (state[14:17] + state[20:23]) * FLAT / STEP_S  # the first is relative to the second
    left, ahead = _direction((goal - puck) * FLAT)
    missing, ahead = _direction(np.sqrt(2 * FRICTION * left) * ahead - speed)
    if missing < 0.06 or left < 0.03:
        return _towards(hand, hand)
    behind = puck - 0.08 * ahead + speed * STEP_S
    along, aside = _place(hand - puck, ahead)
    down = GAIN * (puck[2] - hand[2])
    if along < -0.02 and np.linalg.norm(aside) < 0.03 and hand[2] < puck[2] + 0.03:
        return _action((speed + min(missing, KICK) * ahead) / HAND_SPEED - 5 * aside, down)
    if np.linalg.norm((hand - behind)[:2]) >= 0.015 and np.linalg.norm(speed) > 0.1:  # go along with it
        return _action(speed / HAND_SPEED + GAIN * (behind - hand), down if along < -0.02 else 1.0)
    return _get_behind(hand, puck, behind, apart=0.12, near=0.015)


def pick_and_place(observation: Observation) -> Floats:
    """Go over the block with open fingers, down, close them, and carry it to the goal."""
    state, block, goal = observation["observation"], observation["achieved_goal"], observation["desired_goal"]
    hand, fingers = state[:3], state[9:11].sum()  # metres between the fingers
    apart = np.linalg.norm((hand - block)[:2])
    if apart < 0.02 and abs(hand[2] - block[2]) < 0.02:
        return _towards(hand, block if fingers > 0.055 else goal + hand - block, CLOSED)
    return _towards(hand, block if apart < 0.015 else block + 0.08 * UP, OPEN)


EXPERTS: dict[str, Expert] = {
    "FetchPickAndPlace": pick_and_place,
    "FetchPush": push,
    "FetchReach": reach,
    "FetchSlide": slide,
}


def _get_behind(hand: Floats, thing: Floats, behind: Floats, apart: float, near: float) -> Floats:
    """Go down behind the thing, if the hand is there to `near` metres; else over the thing, up first if beside it."""
    if np.linalg.norm((hand - behind)[:2]) < near:
        return _towards(hand, np.append(behind[:2], thing[2]))
    if hand[2] < thing[2] + 0.05 and np.linalg.norm((hand - thing)[:2]) < apart:
        return _towards(hand, hand + 0.1 * UP)
    return _towards(hand, np.append(behind[:2], thing[2] + ABOVE))


def _towards(hand: Floats, aim: Floats, fingers: float = CLOSED) -> Floats:
    """The action that moves the hand to a place."""
    return np.append(np.clip(GAIN * (aim - hand), -1, 1), fingers)


def _action(level: Floats, up: float) -> Floats:
    """The action of so much motion in x and y, and upwards, with closed fingers."""
    return np.clip([level[0], level[1], up, CLOSED], -1, 1)


def _direction(vector: Floats) -> tuple[float, Floats]:
    """Length and direction of a vector."""
    length = float(np.linalg.norm(vector))
    return length, vector / max(length, 1e-6)


def _place(vector: Floats, ahead: Floats) -> tuple[float, Floats]:
    """How far a vector lies ahead, and what of it lies aside, on the level."""
    along = float(vector * FLAT @ ahead)
    return along, vector * FLAT - along * ahead
