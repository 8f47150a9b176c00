"""`vlp-gym score` on a small video."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tyro")
pytest.importorskip("accelerate")
pytest.importorskip("av")

from command_line import run
from rollouts import painted

from vlp_gym.commands import score as score_command
from vlp_gym.models import registry
from vlp_gym.video import overlay_video, read_video

pytestmark = pytest.mark.usefixtures("two_training_tasks")


class TestScore:
    @pytest.mark.parametrize(("count", "limit", "in_gif"), [(9, 9, 9), (9, 8, 5), (3, 120, 3)])
    def test_curve_and_overlays(self, model, tmp_path, capsys, monkeypatch, count, limit, in_gif):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(score_command, "GIF_FRAMES", limit)
        frames = painted("push-v3", "expert", frames=count, size=24).frames
        overlay_video(frames, np.zeros(count), tmp_path / "clip.mp4", height=96)
        assert run("score", "clip.mp4", "--instruction", "press the button", "--model", model) == 0
        out = Path("runs/score/clip")
        (line,) = capsys.readouterr().out.splitlines()
        rewards = json.loads((out / "rewards.json").read_text())["reward"]
        assert line == (
            f"clip.mp4: reward {rewards[0]:.3f} at the first frame, {rewards[-1]:.3f} at the last, "
            f"{max(rewards):.3f} at most; written to {out}"
        )
        assert len(rewards) == count
        assert len(read_video(out / "overlay.mp4")) == count
        assert len(read_video(out / "overlay.gif")) == in_gif
        assert (out / "curve.png").stat().st_size > 1000

    def test_the_rewards_are_the_wrappers(self, model, video, tmp_path, monkeypatch):
        """The same frames, played by an environment under the wrapper."""
        import gymnasium as gym

        from vlp_gym import VLPRewardWrapper, viz

        frames = read_video(video)
        drawn = {}
        monkeypatch.setattr(viz, "plot_reward_curves", lambda curves, *_, **__: drawn.update(curves))
        assert (
            run("score", video, "--instruction", "press the button", "--model", model, "--out", tmp_path / "out") == 0
        )

        class Player(gym.Env):
            render_mode, observation_space, action_space = "rgb_array", gym.spaces.Discrete(1), gym.spaces.Discrete(1)

            def reset(self, **_):
                self.shown = 0
                return 0, {}

            def step(self, _):
                self.shown += 1
                return 0, 0.0, False, False, {}

            def render(self):
                return frames[self.shown]

        env = VLPRewardWrapper(Player(), "press the button", model=str(model), device="cpu")
        _, info = env.reset()
        rewards = [info["vlp"]["score"]] + [env.step(0)[1] for _ in frames[1:]]
        assert drawn["reward"] == pytest.approx(rewards, abs=1e-6)

    def test_a_model_without_progress_shows_its_preference(self, video, tmp_path, capsys, monkeypatch):
        from vlp_gym.models.protocol import Scores
        from vlp_gym.testing import PaintedModel

        class Blunt(PaintedModel):
            def score(self, frames, text, mask):
                return Scores(preference=super().score(frames, text, mask).preference)

        monkeypatch.setattr(registry, "load_reward_model", lambda name, device: Blunt())
        assert run("score", video, "--instruction", "press the button", "--out", tmp_path / "out") == 0
        assert capsys.readouterr().out.startswith(f"{video}: preference ")

    def test_several_videos_and_folders(self, model, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for place, name in enumerate(("one/a.mp4", "one/b.gif", "two/a.mp4", "c.mp4", "one/notes.txt")):
            frames = painted("push-v3", "expert", place, frames=3 + place, size=24).frames
            Path(name).parent.mkdir(exist_ok=True)
            if name.endswith("txt"):
                Path(name).write_text("no video")
            else:
                overlay_video(frames, np.zeros(len(frames)), name, height=96)
        options = ("--instruction", "press the button", "--model", model)
        assert run("score", "one", "two", "c.mp4", "--out", "all", *options) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(":")[0] for line in lines] == ["one/a.mp4", "one/b.gif", "two/a.mp4", "c.mp4"]
        names = ["one-a.mp4", "one-b.gif", "two-a.mp4", "c.mp4"]  # two stems are equal
        assert [line.rpartition(" ")[2] for line in lines] == [f"all/{name}" for name in names]
        together = [json.loads((Path("all") / name / "rewards.json").read_text()) for name in names]
        assert [len(each["reward"]) for each in together] == [3, 4, 5, 6]
        assert all((Path("all") / name / "curve.png").exists() for name in names)
        assert run("score", "c.mp4", *options) == 0
        alone = json.loads(Path("runs/score/c/rewards.json").read_text())
        assert alone == {**together[3], "reward": pytest.approx(together[3]["reward"], abs=1e-6)}

    def test_a_damaged_video_among_others(self, model, video, tmp_path, capsys):
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(video.read_bytes()[:500])
        assert run("score", broken, video, "--instruction", "push", "--model", model, "--out", tmp_path / "out") == 2
        shown = capsys.readouterr()
        assert shown.out.startswith(f"{video}: reward ")
        last = shown.err.splitlines()[-1]
        assert last.startswith(f"vlp-gym: error: {broken}: ")
        assert last.endswith("; 1 of 2 videos cannot be scored")
        empty = tmp_path / "empty"
        empty.mkdir()
        assert run("score", empty, "--instruction", "push", "--model", model) == 2
        assert capsys.readouterr().err.startswith(f"vlp-gym: error: {empty}: expected videos in the folder (.3gp ")


class TestAttention:
    def test_where_a_sentence_looks(self, video, tmp_path, monkeypatch):
        """The picture has a row for the frames, the sentence and each part of it; the maps are those of the model."""
        pytest.importorskip("open_clip")
        import tiny_clip

        from vlp_gym import viz
        from vlp_gym.models.vlp import VLPModel

        tiny_clip.add_mini_clips(tmp_path)
        settings = {"window": 4, "self_attention_layers": 1, "heads": 4, "head": (8,)}
        VLPModel("open_clip:mini-vit", **settings).save_pretrained(tmp_path / "vlp")
        drawn = {}
        plot = viz.plot_attention

        def recorded(frames, maps, path, **options):
            drawn.update(maps)
            assert len(frames) == 4
            plot(frames, maps, path, **options)

        monkeypatch.setattr(viz, "plot_attention", recorded)
        out = tmp_path / "out"
        asked = ("score", video, "--instruction", "press the red button", "--model", tmp_path / "vlp", "--out", out)
        assert run(*asked, "--attention") == 0
        assert (out / "attention.png").read_bytes().startswith(b"\x89PNG")
        assert list(drawn) == ["press the red button", "press", "red button"]
        for maps in drawn.values():
            assert maps.shape == (4, 4, 4)
            assert maps.sum((1, 2)) == pytest.approx(np.ones(4), abs=1e-5)
        assert not np.allclose(drawn["press"], drawn["red button"])

    def test_a_model_without_it(self, model, video, tmp_path, capsys):
        asked = ("score", video, "--instruction", "press the button", "--model", model, "--out", tmp_path / "out")
        assert run(*asked, "--attention") == 2
        assert capsys.readouterr().err == (
            "vlp-gym: error: --attention: expected a model with cross-attention, such as one from `vlp-gym train vlp`, "
            f"got {model}, a StagedRewardModel\n"
        )
        assert not (tmp_path / "out").exists()

    def test_of_a_data_set(self, data, capsys):
        assert run("score", "--dataset", data, "--attention") == 2
        assert capsys.readouterr().err == "vlp-gym: error: --attention: expected with videos, got --dataset\n"
