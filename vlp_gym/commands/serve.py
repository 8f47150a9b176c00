"""`vlp-gym serve`."""

from __future__ import annotations

import os


def serve(
    model: str = "vlp-compact",
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8300,
    device: str = "auto",
    max_batch: int = 64,
    cache_mb: int = 512,
    threads: int | None = None,
) -> None:
    """Serve one reward model to many environments, processes and machines, until Ctrl-C.

    For example: vlp-gym serve vlp-compact --port 8300

    Everything that takes a model takes its address: model="http://127.0.0.1:8300". Beyond this machine, set
    VLP_GYM_SERVER_TOKEN to the same secret for the server and its clients.

    Args:
        model: reward model: a shipped name, a folder, a hub id, or FAMILY:SPEC.
        host: address to listen at; 0.0.0.0 is every one of this machine.
        port: port to listen at; 0 takes a free one.
        device: where the model runs; auto takes CUDA if there is one.
        max_batch: most windows in one call of the model.
        cache_mb: memory for tokens of frames and sentences, in MiB.
        threads: threads of torch; default: its own choice.
    """
    from vlp_gym.serving.run import run_server
    from vlp_gym.serving.wire import TOKEN_VARIABLE

    run_server(
        model, host=host, port=port, token=os.environ.get(TOKEN_VARIABLE), device=device, max_batch=max_batch,
        cache_mb=cache_mb, threads=threads,
    )  # fmt: skip
