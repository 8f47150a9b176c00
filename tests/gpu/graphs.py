"""A reward model whose calls are captured as CUDA graphs, one for each batch size that is a power of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlp_gym.models.protocol import Scores

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Captured:
    inputs: Tensors
    replay: Callable[[], Tensors]


class GraphedModel(nn.Module):
    """Replays `encode_frames` and `score` of a model as CUDA graphs; a `RewardModel` itself.

    A batch is copied into the rows of the next power of two, and the answers of the other rows are dropped. That needs
    rows that do not depend on each other, and calls that never wait for the GPU. Larger batches than `largest` are not
    captured. On a CPU the same copies go through the model's own calls.

    Args:
        model: a reward model without context, on its final device, in eval mode.
        largest: rows of the largest graph.
    """

    def __init__(self, model: Any, largest: int = 128) -> None:
        super().__init__()
        self.model, self.largest = model, largest
        self.window, self.history, self.frame_size = model.window, model.history, model.frame_size
        self._captured: dict[Any, _Captured] = {}
        self._heads: list[str] = []
        self._pool: Any = None

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """As the model does."""
        return self.model.encode_text(instructions)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """As the model does; the frames are on its device already."""
        return self._run("encode_frames", lambda *rows: (self.model.encode_frames(*rows),), (frames,))[0]

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """As the model does."""
        heads = ("preference", "progress", "relevance")
        present: list[str] = []

        def score(*rows: Tensor) -> Tensors:
            scores = self.model.score(*rows)
            present[:] = [name for name in heads if getattr(scores, name) is not None]
            return tuple(getattr(scores, name) for name in present)

        answers = self._run("score", score, (frames, text, mask))
        self._heads = present or self._heads  # a replay does not call `score`
        return Scores(**dict(zip(self._heads, answers, strict=True)))

    @torch.inference_mode()
    def _run(self, name: str, function: Callable[..., Tensors], rows: Tensors) -> Tensors:
        count = len(rows[0])
        bucket = 1 << (count - 1).bit_length()
        if bucket > self.largest:
            return function(*rows)
        key = (name, bucket, *((tensor.shape[1:], tensor.dtype) for tensor in rows))
        if key not in self._captured:
            self._captured[key] = self._capture(function, bucket, rows)
        captured = self._captured[key]
        for static, tensor in zip(captured.inputs, rows, strict=True):
            static[:count].copy_(tensor)
        return tuple(answer[:count].clone() for answer in captured.replay())

    def _capture(self, function: Callable[..., Tensors], bucket: int, rows: Tensors) -> _Captured:
        # The first row in every row: all zeros could be a window without a real frame, and NaN.
        inputs = tuple(tensor[:1].expand(bucket, *tensor.shape[1:]).clone() for tensor in rows)
        if rows[0].device.type != "cuda":
            return _Captured(inputs, lambda: function(*inputs))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries choose their kernels and take their workspaces at the first calls
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use CUDA meanwhile, and one pool is enough: graphs are replayed one after the other.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = function(*inputs)

        def replay() -> Tensors:
            graph.replay()
            return outputs

        return _Captured(inputs, replay)
