"""Shards are uploaded after a collection."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest

pytest.importorskip("tyro")
pytest.importorskip("accelerate")
pytest.importorskip("av")

from command_line import run


class TestPushToHub:
    class Api:
        calls: ClassVar[list] = []

        def create_repo(self, *arguments, **options):
            self.calls.append(("create", arguments, options))

        def upload_folder(self, **options):
            self.calls.append(("upload", options))

    @pytest.fixture(autouse=True)
    def _no_collection(self, monkeypatch):
        import huggingface_hub

        from vlp_gym.metaworld import simulator

        self.Api.calls = []
        monkeypatch.setattr(huggingface_hub, "HfApi", self.Api)
        monkeypatch.setattr(simulator, "SIMULATOR", replace(simulator.SIMULATOR, collect=lambda *_, **__: None))

    def test_shards_and_settings_are_uploaded(self, tmp_path, capsys):
        assert run("collect", "metaworld", "--out", tmp_path, "--push-to-hub", "me/rollouts") == 0
        assert capsys.readouterr().out.splitlines() == [
            f"rollouts: {tmp_path}",
            "uploaded: https://huggingface.co/datasets/me/rollouts",
        ]
        patterns = ["data/*.parquet", "collect.json"]
        assert self.Api.calls == [
            ("create", ("me/rollouts",), {"repo_type": "dataset", "exist_ok": True}),
            (
                "upload",
                {"repo_id": "me/rollouts", "folder_path": tmp_path, "repo_type": "dataset", "allow_patterns": patterns},
            ),
        ]

    def test_a_hub_that_refuses(self, tmp_path, capsys, monkeypatch):
        def refuse(self, **_):
            raise RuntimeError("403 Forbidden\nno token")

        monkeypatch.setattr(self.Api, "upload_folder", refuse)
        assert run("collect", "metaworld", "--out", tmp_path, "--push-to-hub", "me/rollouts") == 2
        assert capsys.readouterr().err == (
            "vlp-gym: error: me/rollouts: the hub did not take the shards (403 Forbidden no token); "
            f"they are in {tmp_path}\n"
        )
