"""Work for a Ray cluster, or for this machine where there is none; which process does what, and when, is Ray's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from vlp_gym.errors import DatasetError, import_extra, reason

Result = TypeVar("Result")
GOES_ON = "the same command goes on where it stopped"


def start_ray() -> Any:
    """Ray: the cluster of the environment variable RAY_ADDRESS, or one that begins here and ends with this process.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    ray = import_extra("ray", "--ray needs ray", "ray")
    if not ray.is_initialized():
        ray.init()
    return ray


@contextmanager
def own_errors(ray: Any) -> Iterator[None]:
    """Errors of a task as if it had run here.

    Raises:
        DatasetError: a process or a machine of the cluster was lost.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise DatasetError(f"Ray has lost a process ({reason(error)}); {GOES_ON}") from error


def run_tasks(function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """The results of a function of a module, as they come; the other tasks are cancelled when one fails.

    Args:
        function: each call is a task of one core.
        jobs: the arguments of each.
    """
    ray = start_ray()
    task = ray.remote(function)
    waiting = [task.remote(*job) for job in jobs]
    try:
        while waiting:
            with own_errors(ray):
                (done,), waiting = ray.wait(waiting)
                result = ray.get(done)
            yield result
    finally:
        for each in waiting:
            ray.cancel(each, force=True)
