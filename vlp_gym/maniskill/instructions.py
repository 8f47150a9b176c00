"""Sentences of the ManiSkill tasks: the canonical one first, for training, and others that training never uses."""

from __future__ import annotations

TRAINING: dict[str, tuple[str, ...]] = {
    "LiftPegUpright": (
        "stand the peg upright",
        "lift the peg and put it down on its end",
        "set the two-coloured bar upright on the table",
        "raise the peg so that it stands",
        "turn the lying peg up until it stands",
    ),
    "PegInsertionSide": (
        "insert the peg into the hole in the box",
        "push the peg into the side of the box",
        "put the peg through the hole",
        "pick up the bar and slide it into the box",
        "take the peg and fit it into the hole of the block",
    ),
    "PickCube": (
        "pick up the cube and bring it to the green ball",
        "grasp the red cube and carry it to the green ball",
        "take the cube to the green mark",
        "grab the red block and hold it at the green ball",
        "lift the cube to the green goal",
    ),
    "PlaceSphere": (
        "place the ball in the bin",
        "put the blue ball into the small tray",
        "pick up the sphere and set it down in the bin",
        "drop the blue sphere in the holder",
        "take the ball and lay it into the tray",
    ),
    "PlugCharger": (
        "plug the charger into the socket",
        "put the plug into the wall socket",
        "pick up the charger and plug it in",
        "insert the prongs of the charger into the outlet",
        "take the white plug and push it into the receptacle",
    ),
    "PokeCube": (
        "poke the cube to the target with the peg",
        "use the bar to push the red cube onto the target",
        "take the peg and shove the cube to the rings with it",
        "push the red cube with the blue bar until it is on the target",
        "hold the peg and poke the block onto the goal",
    ),
    "PullCube": (
        "pull the cube onto the target",
        "drag the blue cube back to the rings",
        "pull the block towards the robot onto the target",
        "draw the cube back to the red and white circles",
        "reach behind the cube and pull it to the goal",
    ),
    "PullCubeTool": (
        "pull the cube closer with the tool",
        "use the hook to drag the blue cube towards the robot",
        "take the red tool and pull the cube near",
        "fetch the far cube with the L-shaped tool",
        "grab the hook and draw the block to the robot",
    ),
    "PushCube": (
        "push the cube onto the target",
        "push the blue cube to the rings",
        "shove the block away from the robot onto the target",
        "move the cube forward to the red and white circles",
        "slide the cube to the goal with the hand",
    ),
    "StackCube": (
        "stack the red cube on the green cube",
        "put the red cube on top of the green one",
        "pick up the red block and set it on the green block",
        "lay the red cube onto the green cube",
        "build a tower with the red cube above the green one",
    ),
    "StackPyramid": (
        "build a pyramid of the three cubes",
        "put the red cube beside the green one and the blue one on top of both",
        "stack the blue cube on the red and the green cube",
        "make a pyramid with the blue cube on top",
        "lay the blue block across the red and green blocks",
    ),
}
HELD_OUT: dict[str, tuple[str, ...]] = {
    "LiftPegUpright": ("get the bar to stand on one end", "make the peg vertical"),
    "PegInsertionSide": ("stick the bar in the opening of the box", "make the peg go into the block"),
    "PickCube": ("transport the red block to the green dot", "get hold of the cube and put it where the green ball is"),
    "PlaceSphere": ("get the ball to lie in the tray", "bring the blue ball to its holder"),
    "PlugCharger": ("connect the charger to the outlet", "get the plug into the receptacle"),
    "PokeCube": ("prod the block onto the rings with the bar", "get the cube to the target by means of the peg"),
    "PullCube": ("bring the block nearer, onto the rings", "haul the cube back to the target"),
    "PullCubeTool": ("bring the distant block near by means of the hook", "haul the cube in with the red tool"),
    "PushCube": ("get the block to the rings by pushing it", "nudge the cube away onto the target"),
    "StackCube": ("pile the red block onto the green one", "get the red cube to rest upon the green cube"),
    "StackPyramid": ("pile up the blocks as a pyramid", "get the blue block to rest upon the other two"),
}
