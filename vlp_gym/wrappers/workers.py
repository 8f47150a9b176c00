"""The worker processes of a vector environment: a death among them is an error at once, and leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Pipe, wait
from typing import Any

from vlp_gym.errors import VLPError


class Workers:
    """Watches the processes of an `AsyncVectorEnv` or `SubprocVecEnv` (not a wrapper); other kinds have none."""

    def __init__(self, venv: Any) -> None:
        self.stopped = False
        """Whether a worker died, and the others were stopped."""
        self._venv = venv
        self._first_dead: list[int] = []
        self._processes: list[Any] = list(getattr(venv, "processes", ()))

    @contextmanager
    def guard(self) -> Iterator[None]:
        """While the vector environment talks with its workers.

        Raises:
            VLPError: if one of them has died; they are all stopped then, and the vector environment is closed.
        """
        ended = [index for index, pipe in enumerate(self._pipes()) if pipe is None]
        if ended:  # Gymnasium goes on after an error of an environment, with a hole in its list
            raise VLPError(f"the env workers {ended} have ended after an error; make a new vector environment")
        try:
            yield
        except (EOFError, ConnectionError) as error:
            dead = self._first_dead or self.dead(timeout_s=1.0)
            if not dead:  # the environment's own
                raise
            self.stop()
            named = ", ".join(f"{index} (exit code {self._processes[index].exitcode})" for index in dead)
            raise VLPError(
                f"these env workers have died: {named}; the others were stopped, make a new vector environment"
            ) from error

    def wait(self) -> None:
        """Wait until every worker has answered.

        The vector environments read one pipe after the other. A death would be seen late behind a slow worker, or
        never, where another worker has inherited the dead one's end of the pipe ("fork").

        Raises:
            EOFError: if a worker dies meanwhile.
        """
        waiting = dict(zip(self._pipes(), self._processes, strict=True))
        alive = {process.sentinel: process for process in self._processes}
        while waiting:
            ready = wait([*waiting, *alive])
            for pipe in [pipe for pipe in waiting if pipe in ready]:
                del waiting[pipe]
            for sentinel in [sentinel for sentinel in alive if sentinel in ready]:
                process = alive.pop(sentinel)
                process.join()
                silent = any(owner is process and not pipe.poll() for pipe, owner in waiting.items())
                if process.exitcode != 0 or silent:
                    raise EOFError

    @contextmanager
    def watch(self) -> Iterator[None]:
        """While the vector environment both sends and reads, with no room for `wait` between.

        Where one worker dies, the others are ended too: then no process is left that holds its end of the pipe, and the
        read ends with an EOFError.
        """
        if not self._processes:
            yield
            return
        over, end = Pipe(duplex=False)
        sentinels = [process.sentinel for process in self._processes]

        def look() -> None:
            ready = wait([over, *sentinels])
            if over not in ready:
                self._first_dead = [index for index, sentinel in enumerate(sentinels) if sentinel in ready]
                for process in self._processes:
                    process.terminate()

        watcher = threading.Thread(target=look, name="vlp_gym-workers", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            end.close()
            watcher.join()
            over.close()

    def dead(self, timeout_s: float = 0.0) -> list[int]:
        """The workers that ended by a signal or an error, after a wait for the first: its pipe may close before it."""
        if not self._processes:
            return []
        for sentinel in wait([process.sentinel for process in self._processes], timeout_s):
            next(process for process in self._processes if process.sentinel == sentinel).join()
        return [index for index, process in enumerate(self._processes) if process.exitcode not in (None, 0)]

    def stop(self) -> None:
        """End all workers, whatever they do, and close the vector environment."""
        self.stopped = True
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes():
            if pipe is not None:
                pipe.close()
        self._venv.closed = True

    def _pipes(self) -> list[Any]:
        return list(getattr(self._venv, "parent_pipes", None) or getattr(self._venv, "remotes", None) or ())
