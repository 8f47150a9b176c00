"""Trajectories on disk: they come back as they were, or a DatasetError says which shard or rollout is wrong."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("datasets")

import pyarrow as pa
import pyarrow.parquet as pq
from rollouts import painted, painted_tasks, write_tasks, write_version_1

from vlp_gym.data import check, shards
from vlp_gym.data.shards import (
    decode_trajectory,
    encode_trajectory,
    load_trajectories,
    shard_path,
    shard_tasks,
    stream_trajectories,
    write_shard,
)
from vlp_gym.errors import DatasetError, MissingExtraError

TASKS = ("push-back-v3", "push-v3")  # one name starts as the other does


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("rollouts")
    write_tasks(made, painted_tasks(TASKS, tiers=("expert", "random")))
    return made


def full(task="fold the towel", frames=4, wide=3, **changed):
    """A rollout of no simulator that has everything; O = `wide`, A = 2."""
    made = painted(task, "expert", frames=frames)
    steps, rng = len(made.episode_reward), np.random.default_rng(frames)
    return replace(
        made,
        **{
            "sentences": ("fold the towel", "make the towel small"),
            "held_out": ("a towel gets folded",),
            "opposite_sentences": (("unfold the towel", "spread the towel"), ()),
            "opposite": "spread the towel",
            "sibling": "roll the towel",
            "variants": {"phrase": ("towel", "fold")},
            "observation": rng.normal(size=(steps + 1, wide)).astype(np.float32),
            "action": rng.normal(size=(steps, 2)).astype(np.float32),
            **changed,
        },
    )


def same(a, b):
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, np.ndarray):
            equal = name == "frames" or (value.dtype == other.dtype and np.array_equal(value, other))
        else:
            equal = type(value) is type(other) and value == other
        assert equal, name
    return True


class TestRoundTrip:
    def test_everything_comes_back_in_order(self, folder):
        written = painted_tasks(TASKS, tiers=("expert", "random"))
        read = load_trajectories(folder, progress_bar=False)
        assert len(read) == len(written) == 8
        for a, b in zip(written, read, strict=True):
            assert same(a, b)
            assert b.frames.dtype == np.uint8
            assert np.abs(a.frames.astype(int) - b.frames).max() <= 3  # JPEG
            assert (b.step.dtype, b.reward.dtype, b.success.dtype) == (np.int64, np.float32, bool)

    def test_smooth_pictures_lose_little(self):
        y, x = np.mgrid[:112, :112] / 112
        picture = np.stack([np.sin(9 * x + y), np.cos(7 * y), np.sin(5 * (x + y))], -1) * 100 + 128
        trajectory = replace(painted("push-v3", "random", frames=2), frames=np.stack([picture.astype(np.uint8)] * 2))
        back = decode_trajectory(encode_trajectory(trajectory))
        assert np.abs(back.frames - picture).mean() < 1.5

    def test_one_task_of_two(self, folder):
        read = list(stream_trajectories(folder, tasks=["push-v3"]))
        assert {t.task for t in read} == {"push-v3"}
        assert len(read) == 4

    def test_what_is_not_kept_is_not_decoded(self, tmp_path):
        write_tasks(tmp_path, painted_tasks(["push-v3"], tiers=("expert", "random")))
        damaged = shard_path(tmp_path, "push-v3", "random")
        rows = pq.read_table(damaged).to_pylist()
        schema = pq.read_schema(damaged)
        for row in rows:
            row["frames"] = [{"bytes": b"no picture", "path": None}] * len(row["frames"])
        pq.write_table(pa.Table.from_pylist(rows, schema), damaged)
        asked = []

        def keep(*kind):
            asked.append(kind)
            return kind == ("push-v3", "expert") and len(asked) == 2

        (only,) = stream_trajectories(tmp_path, keep=keep)
        assert same(only, painted_tasks(["push-v3"], tiers=("expert",))[1])
        assert asked == [("push-v3", "expert")] * 2 + [("push-v3", "random")] * 2
        with pytest.raises(DatasetError, match="frame 0 cannot be decoded"):
            list(stream_trajectories(tmp_path))

    def test_streaming_needs_no_more_than_it_is_asked_for(self, folder):
        assert next(iter(stream_trajectories(folder))).task == "push-back-v3"

    def test_any_reader_of_parquet_sees_pictures(self, folder):
        import datasets

        rows = datasets.Dataset.from_parquet(str(shard_path(folder, "push-v3", "expert")), cache_dir=str(folder / "c"))
        assert rows.features["frames"].feature == datasets.Image()
        assert rows[0]["frames"][0].size == (16, 16)
        assert rows[0]["task"] == "push-v3"

    @pytest.mark.parametrize("wide", [1, 39])
    def test_sentences_observations_and_actions(self, tmp_path, wide):
        written = [
            full(wide=wide),
            full(frames=3, observation=None, action=None, variants={}, opposite_sentences=()),
            full(frames=2, sentences=(), held_out=(), opposite_sentences=(), opposite=None, sibling=None),
        ]
        write_tasks(tmp_path, written)
        read = load_trajectories(tmp_path, progress_bar=False)
        assert len(read) == 3
        assert all(same(a, b) for a, b in zip(written, read, strict=True))

    def test_version_1_still_reads_beside_version_2(self, tmp_path):
        old, new = painted("push-v3", "expert"), full("reach-v3")
        write_version_1([replace(old, sentences=("push",))], shard_path(tmp_path, "push-v3", "expert"))
        write_tasks(tmp_path, [new])
        read = load_trajectories(tmp_path, progress_bar=False)
        bare = replace(old, sentences=(), held_out=(), opposite_sentences=(), opposite=None, sibling=None, variants={})
        assert (bare.observation, bare.action) == (None, None)
        assert same(bare, read[0])
        assert same(new, read[1])

    def test_any_reader_of_parquet_sees_which_version_it_is(self, tmp_path):
        import datasets

        write_tasks(tmp_path, [full()])
        file = str(shard_path(tmp_path, "fold the towel", "expert"))
        (row,) = datasets.load_dataset("parquet", data_files=file, split="train", streaming=True)
        assert row["format_version"] == shards.FORMAT_VERSION == 2
        assert row["sentences"] == ["fold the towel", "make the towel small"]

    def test_a_task_whose_name_begins_another(self, tmp_path):
        write_tasks(tmp_path, [full("fold"), full("fold-shirt")])
        assert shard_tasks(tmp_path) == ["fold", "fold-shirt"]
        assert [t.task for t in stream_trajectories(tmp_path, tasks=["fold"])] == ["fold"]

    def test_first_success(self):
        assert painted("push-v3", "expert").first_success == 12
        assert painted("push-v3", "random").first_success is None


class TestFaults:
    def test_no_shards(self, tmp_path):
        with pytest.raises(DatasetError) as caught:
            load_trajectories(tmp_path, progress_bar=False)
        assert str(caught.value) == (
            f"{tmp_path}: expected parquet shards in {tmp_path / 'data'}, found none; "
            f"run: vlp-gym collect metaworld --out {tmp_path}"
        )

    def test_missing_task(self, folder):
        with pytest.raises(DatasetError) as caught:
            next(stream_trajectories(folder, tasks=["push-v3", "reach-v3", "pick-place-v3"]))
        assert str(caught.value) == (
            f"{folder}: no trajectories of reach-v3, pick-place-v3; run vlp-gym collect with --tasks"
        )

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
    def test_truncated_shard(self, tmp_path, folder, share):
        whole = shard_path(folder, "push-v3", "expert").read_bytes()
        path = shard_path(tmp_path, "push-v3", "expert")
        path.parent.mkdir()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(
            DatasetError, match=r"a shard cannot be read \(.*\); delete it and collect again$"
        ) as caught:
            load_trajectories(tmp_path, progress_bar=False)
        assert str(caught.value).startswith(f"{tmp_path}: ")

    def test_a_shard_of_something_else(self, tmp_path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = shard_path(tmp_path, "push-v3", "expert")
        path.parent.mkdir()
        pq.write_table(pa.table({"price": [1, 2]}), path)
        with pytest.raises(DatasetError, match=rf"^{re.escape(str(tmp_path))}: a shard cannot be read "):
            load_trajectories(tmp_path, progress_bar=False)

    def test_frame_that_is_no_picture(self):
        row = encode_trajectory(painted("push-v3", "expert", 7))
        row["frames"][3]["bytes"] = b"no picture"
        with pytest.raises(
            DatasetError, match=r"^push-v3/expert/7: frame 3 cannot be decoded \(.*\); collect this shard again$"
        ):
            decode_trajectory(row)

    def test_frame_cut_short(self):
        row = encode_trajectory(painted("push-v3", "expert", 7))
        row["frames"][3]["bytes"] = row["frames"][3]["bytes"][:-40]
        with pytest.raises(
            DatasetError, match=r"^push-v3/expert/7: frame 3 cannot be decoded \(.*\); collect this shard again$"
        ):
            decode_trajectory(row)

    def test_frames_of_several_sizes(self):
        row, other = (encode_trajectory(painted("push-v3", "expert", 7, size=size)) for size in (16, 24))
        row["frames"][3] = other["frames"][3]
        with pytest.raises(DatasetError) as caught:
            decode_trajectory(row)
        assert str(caught.value) == "push-v3/expert/7: frames of several sizes"

    @pytest.mark.parametrize("short", ["frames", "step", "reward", "success", "positions"])
    def test_one_of_each_a_frame(self, short):
        row = encode_trajectory(painted("push-v3", "expert", 7))
        row[short].pop()
        names = ("frames", "step", "reward", "success", "positions")
        lengths = {name: 15 if name == short else 16 for name in names}
        with pytest.raises(DatasetError) as caught:
            decode_trajectory(row)
        assert str(caught.value) == (
            f"push-v3/expert/7: expected one step, reward, success and positions a frame, got {lengths}"
        )

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"observation": np.zeros((15, 3))}, "expected 16 rows of observation for 15 environment steps, got 15"),
            ({"action": np.zeros((16, 2))}, "expected 15 rows of action for 15 environment steps, got 16"),
            (
                {"opposite_sentences": (("unfold",),)},
                "expected opposite_sentences for none or each of 2 sentences, got 1",
            ),
        ],
    )
    def test_lengths_that_do_not_fit(self, tmp_path, changed, message):
        path = shard_path(tmp_path, "fold the towel", "expert")
        with pytest.raises(DatasetError) as caught:
            write_shard([full(**changed)], path)
        assert str(caught.value) == f"fold the towel/expert/0: {message}"
        assert not path.exists()
        with pytest.raises(DatasetError) as caught:
            decode_trajectory(encode_trajectory(full(**changed)))
        assert str(caught.value) == f"fold the towel/expert/0: {message}"

    def test_rows_of_several_lengths(self):
        row = encode_trajectory(full())
        row["action"][3].append(0.0)
        with pytest.raises(DatasetError) as caught:
            decode_trajectory(row)
        assert str(caught.value) == "fold the towel/expert/0: expected rows of action of one length, got [2, 3]"

    def test_unknown_kind_of_variant(self, tmp_path):
        with pytest.raises(DatasetError) as caught:
            write_shard([full(variants={"poem": ("o towel",)})], shard_path(tmp_path, "fold the towel", "expert"))
        assert str(caught.value) == (
            "fold the towel/expert/0: expected variants of phrase, description, right_colour, wrong_colour, "
            "got ['poem']"
        )

    def test_a_newer_version_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shards, "FORMAT_VERSION", 3)
        write_tasks(tmp_path, [full()])
        monkeypatch.undo()
        with pytest.raises(DatasetError) as caught:
            load_trajectories(tmp_path, progress_bar=False)
        assert str(caught.value) == (
            f"{shard_path(tmp_path, 'fold the towel', 'expert')}, row 0: expected format version 1 to 2, got 3; "
            "update vlp_gym to read it"
        )

    def test_no_sentences(self):
        with pytest.raises(DatasetError) as caught:
            full(sentences=()).canonical  # noqa: B018
        assert str(caught.value) == (
            "task fold the towel, expert, seed 0: expected sentences that say what the task is, found none; "
            "set `Trajectory.sentences`, the canonical one first"
        )

    def test_no_frames_or_too_many(self, monkeypatch):
        monkeypatch.setattr(check, "MAX_FRAMES", 10)
        row = encode_trajectory(painted("push-v3", "expert", 7))
        for frames, count in ((row["frames"], 16), ([], 0)):
            with pytest.raises(DatasetError) as caught:
                decode_trajectory({**row, "frames": frames})
            assert str(caught.value) == f"push-v3/expert/7: expected 1 to 10 frames, got {count}"

    def test_a_failed_write_leaves_the_old_shard(self, tmp_path, monkeypatch):
        path = tmp_path / "data" / "push-v3-expert.parquet"
        write_shard([painted("push-v3", "expert", 1)], path)
        before = path.read_bytes()

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            write_shard([painted("push-v3", "expert", 2)], path)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]

    def test_without_the_extra(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(MissingExtraError) as caught:
            next(stream_trajectories(folder))
        assert str(caught.value) == 'reading and writing datasets needs: pip install "vlp_gym[train]"'
