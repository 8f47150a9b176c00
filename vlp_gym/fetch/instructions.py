"""Sentences of the Fetch tasks: the canonical one first, for training, and others that training never uses."""

from __future__ import annotations

TRAINING: dict[str, tuple[str, ...]] = {
    "FetchPickAndPlace": (
        "pick up the block and bring it to the red ball",
        "grasp the block and carry it to the red ball",
        "take the black cube to the red ball",
        "grab the block and hold it at the red mark",
        "lift the cube and place it at the red ball",
    ),
    "FetchPush": (
        "push the block to the red ball",
        "push the black cube onto the red mark",
        "shove the block over the table to the red ball",
        "move the block to the red mark by pushing it",
        "nudge the cube along the table to the red ball",
    ),
    "FetchReach": (
        "move the gripper to the red ball",
        "reach the red ball with the hand",
        "bring the robot hand to the red mark",
        "touch the red ball with the gripper",
        "put the fingers at the red ball",
    ),
    "FetchSlide": (
        "slide the puck to the red ball",
        "hit the puck so that it slides to the red mark",
        "strike the black puck so that it stops at the red ball",
        "let the puck glide over the table to the red ball",
        "knock the puck across the table to the red mark",
    ),
}
HELD_OUT: dict[str, tuple[str, ...]] = {
    "FetchPickAndPlace": (
        "transport the cube to the red dot",
        "get hold of the block and put it where the red ball is",
    ),
    "FetchPush": ("slip the cube across to the red dot", "get the block to the red ball without lifting it"),
    "FetchReach": ("guide the arm's tip to the red dot", "make the gripper meet the red ball"),
    "FetchSlide": ("send the disc gliding to the red dot", "make the puck come to rest at the red ball"),
}
