"""HDF5 files in robomimic's layout, written by h5py as LIBERO writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlp_gym.data.sources import SentencesMissingError, SourceOptions, open_source
from vlp_gym.data.trajectory import NEAR_MISS
from vlp_gym.errors import DatasetError

h5py = pytest.importorskip("h5py")

SIDE = 16


def pictures(number, steps):
    """Rows get brighter from the top down; the columns tell demonstration and step apart."""
    frames = np.zeros((steps, SIDE, SIDE, 3), np.uint8)
    frames[..., 0] = 10 * np.arange(SIDE)[:, None]
    frames[..., 1] = 20 * number
    frames[..., 2] = np.arange(steps)[:, None, None]
    return frames


def write(path, sentence="turn on the stove", demonstrations=((30, True), (12, True)), convention="opengl"):
    """A file as LIBERO writes it: pictures from bottom to top, 1 as the last reward."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if sentence is not None:
            data.attrs["problem_info"] = json.dumps({"domain_name": "robosuite", "language_instruction": sentence})
        data.attrs["env_args"] = json.dumps({"env_name": "Stove", "env_kwargs": {"control_freq": 10}})
        if convention is not None:
            data.attrs["macros_image_convention"] = convention
        for number, (steps, success) in enumerate(demonstrations):
            own = data.create_group(f"demo_{number}")
            rewards = np.zeros(steps, np.uint8)
            rewards[-1] = success
            own["rewards"], own["dones"] = rewards, np.eye(1, steps, steps - 1, dtype=np.uint8)[0]
            own["actions"] = np.zeros((steps, 7))
            frames = pictures(number, steps)
            observations = own.create_group("obs")
            observations.create_dataset(
                "agentview_rgb", data=frames[:, ::-1], chunks=(1, SIDE, SIDE, 3), compression="gzip"
            )
            observations["ee_pos"] = np.zeros((steps, 3))
            observations["eye_in_hand_rgb"] = 255 - frames[:, ::-1]
    return path


def read(path, **options):
    return list(open_source(f"libero:{path}", SourceOptions(size=SIDE, fps=10, **options)).stream())


def test_demonstrations_of_libero(tmp_path):
    write(tmp_path / "libero_90" / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5")
    write(tmp_path / "libero_90" / "b_demo.hdf5", "close the drawer", [(9, False)] + [(5, True)] * 10)
    write(tmp_path / "libero_90" / "c_demo.hdf5", demonstrations=[(7, True)])
    source = open_source(f"libero:{tmp_path}", SourceOptions(size=SIDE, fps=10))
    assert source.tasks() == ["close the drawer", "turn on the stove"]
    found = list(source.stream())
    assert [len(each.frames) for each in found] == [30, 12, 9, *[5] * 10, 7]
    assert [each.seed for each in found] == list(range(14))
    assert [each.tier for each in found] == ["expert", "expert", NEAR_MISS, *["expert"] * 11]
    for number, each in enumerate(found[:2]):
        np.testing.assert_array_equal(each.frames, pictures(number, len(each.frames)))  # upright
        assert each.sentences == ("turn on the stove",)
        assert each.camera == "agentview_rgb"
        assert each.success.tolist() == [False] * (len(each.frames) - 1) + [True]
        assert each.episode_reward.tolist() == [0.0] * (len(each.frames) - 2) + [1.0]
    assert found[2].success.sum() == 0
    assert [each.seed for each in source.stream(["turn on the stove"])] == [0, 1, 13]
    hand = read(tmp_path / "libero_90" / "c_demo.hdf5", camera="eye_in_hand_rgb")[0]
    np.testing.assert_array_equal(hand.frames, 255 - pictures(0, 7))
    slow = next(iter(open_source(f"libero:{tmp_path}", SourceOptions(size=SIDE, fps=2)).stream()))
    assert slow.step.tolist() == [0, 5, 10, 15, 20, 25, 29]


def test_sentences_of_libero(tmp_path):
    """In a list, or in the name alone."""
    path = write(tmp_path / "LIVING_ROOM_SCENE2_open_the_box_demo.hdf5")
    for told, sentence in ((["turn on ", "the stove"], "turn on the stove"), (None, "open the box")):
        with h5py.File(path, "r+") as file:
            file["data"].attrs["problem_info"] = json.dumps({"language_instruction": told} if told else {})
        assert read(path)[0].sentences == (sentence,)


def test_a_file_without_a_sentence(tmp_path):
    path = write(tmp_path / "lift.hdf5", sentence=None, convention="opencv")
    with pytest.raises(SentencesMissingError, match=f'data convert libero:{path} --instruction "..."'):
        read(path)
    found = read(path, instruction="lift the cube")
    assert found[0].sentences == ("lift the cube",)
    np.testing.assert_array_equal(found[0].frames[:, ::-1], pictures(0, 30))  # stored from top to bottom
    with pytest.raises(DatasetError, match=r"^--instruction: .* has a sentence of its own$"):
        read(write(tmp_path / "told.hdf5"), instruction="lift the cube")


def link(file, kind):
    with h5py.File(Path(file.filename).with_name("other.hdf5"), "w") as other:
        other["frames"] = pictures(0, 30)
    observations = file["data/demo_0/obs"]
    del observations["agentview_rgb"]
    if kind == "external":
        observations["agentview_rgb"] = h5py.ExternalLink("other.hdf5", "frames")
    elif kind == "virtual":
        layout = h5py.VirtualLayout((30, SIDE, SIDE, 3), np.uint8)
        layout[:] = h5py.VirtualSource("other.hdf5", "frames", (30, SIDE, SIDE, 3))
        observations.create_virtual_dataset("agentview_rgb", layout)
    else:
        size = 30 * SIDE * SIDE * 3
        observations.create_dataset("agentview_rgb", (30, SIDE, SIDE, 3), np.uint8, external=[("other.hdf5", 0, size)])


def large(file):
    del file["data/demo_0/obs/agentview_rgb"]
    file["data/demo_0/obs"].create_dataset(
        "agentview_rgb", (30, 4000, 4000, 3), np.uint8, chunks=(30, 4000, 4000, 3), compression="gzip"
    )


def replace(name, value):
    def change(file):
        del file[f"data/demo_0/{name}"]
        if value is not None:
            file[f"data/demo_0/{name}"] = value

    return change


def attribute(name, value):
    return lambda file: file["data"].attrs.__setitem__(name, value)


BAD = [
    (lambda file: link(file, "external"), "demo_0: agentview_rgb: expected it in this file, found a link"),
    (lambda file: link(file, "virtual"), "demo_0: agentview_rgb: expected it in this file, found a pointer"),
    (lambda file: link(file, "raw"), "demo_0: agentview_rgb: expected it in this file, found a pointer"),
    (large, r"demo_0: agentview_rgb: its blocks would take 1,440,000,000 bytes each"),
    (
        replace("rewards", np.zeros(29)),
        r"demo_0: rewards: expected 30 numbers, as many as pictures, got float64 \[29\]",
    ),
    (replace("rewards", np.full(30, np.nan)), "demo_0: rewards: expected finite numbers"),
    (replace("rewards", "many"), "demo_0: rewards: expected 30 numbers"),
    (replace("obs", None), "demo_0: expected obs in /data/demo_0, found actions, dones, rewards"),
    (replace("obs", np.zeros(3)), "demo_0: obs: expected a group, found Dataset"),
    (
        replace("obs/agentview_rgb", np.zeros((1, 8, 8, 3), np.uint8)),
        "demo_0: agentview_rgb: expected 2 to 100,000 pic",
    ),
    (attribute("problem_info", "{"), "no HDF5 file of demonstrations that can be read"),
    (attribute("problem_info", "[]"), "problem_info: expected a JSON object, got list"),
    (attribute("problem_info", json.dumps({"language_instruction": "  "})), "problem_info: "),
    (attribute("problem_info", json.dumps({"language_instruction": 3})), "problem_info: "),
    (
        attribute("env_args", json.dumps({"env_kwargs": {"control_freq": 0}})),
        "control_freq as steps in a second, got 0",
    ),
    (attribute("env_args", json.dumps({"env_kwargs": 3})), "no HDF5 file of demonstrations that can be read"),
    (lambda file: [file["data"].__delitem__(f"demo_{k}") for k in (0, 1)], "expected data/demo_0 and on, found none"),
    (lambda file: file.__delitem__("data"), "expected data in /, found nothing"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_files(tmp_path, change, message):
    path = write(tmp_path / "bad.hdf5")
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DatasetError, match=message) as refused:
        read(path)
    assert str(path) in str(refused.value)


def test_the_rest_goes_on(tmp_path):
    path = write(tmp_path / "some.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/obs/agentview_rgb"]
        del file["data/demo_0/obs/eye_in_hand_rgb"]
    broken = []
    found = list(open_source(f"libero:{path}", SourceOptions(size=SIDE)).stream(on_broken=broken.append))
    assert [each.seed for each in found] == [1]
    assert [str(each) for each in broken] == [
        f"{path}, demo_0: expected pictures uint8 [T, H, W, 3] in obs, found none"
    ]


def test_no_file(tmp_path):
    with pytest.raises(DatasetError, match=r"expected files of demonstrations \(.hdf5 .h5\), found none$"):
        read(tmp_path)
    (tmp_path / "cut.hdf5").write_bytes(write(tmp_path / "whole" / "a.hdf5").read_bytes()[:5_000])
    with pytest.raises(DatasetError, match=r"cut\.hdf5: no HDF5 file of demonstrations that can be read"):
        read(tmp_path)
