"""Reads the rows of parquet files of unknown origin in a process of its own: this file, run as a program.

Such a file may expand without end, or crash its reader. The process is held to limits on memory and time, and sends one
row at a time. It imports nothing of vlp_gym, so it starts in a quarter of a second.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MAX_MEMORY = 512 * 2**20  # bytes of the process
MAX_SECONDS = 10.0  # of computing, for one row
MAX_ROW_BYTES = 64 * 2**20
_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")  # the stack of each counts as memory
_SETTINGS = {"ARROW_DEFAULT_MEMORY_POOL": "system", "PYTHONWARNINGS": "ignore", **dict.fromkeys(_THREADS, "1")}


class RowReader:
    """A process that reads files, a context manager.

    Args:
        schema: the columns to read, others are skipped. Numbers may be stored in other widths.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_SETTINGS, "PYTHONPATH": path},
        )
        theirs.close()
        self._send(schema.serialize())

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def read(self, file: str | os.PathLike[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a file, batches of one row with those columns of the schema that the file has.

        Raises:
            ValueError: it is no parquet file, is damaged, has a column of another type, or goes over a limit; the
                message is only the reason.
        """
        self._send(os.fsencode(file))
        while message := self._receive():
            if message[:1] == b"E":
                raise ValueError(message[1:].decode())
            yield pa.ipc.open_stream(message).read_next_batch()

    def _send(self, message: Any) -> None:
        with contextlib.suppress(ConnectionError):  # then there is nothing to receive
            self._pipe.send_bytes(message)

    def _receive(self) -> bytes:
        try:
            return self._pipe.recv_bytes()
        except (EOFError, ConnectionError) as error:
            end = self._process.wait()
            slow = f"a row takes more than {MAX_SECONDS:g} s"
            raise ValueError(slow if end == -signal.SIGPROF else f"the process that reads it ended: {end}") from error


def _serve(pipe: Connection) -> None:
    """For each file that the parent names, send its rows and an empty message, or an E and the reason."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    schema = pa.ipc.read_schema(pa.py_buffer(pipe.recv_bytes()))
    while True:
        file = os.fsdecode(pipe.recv_bytes())
        try:
            for row in _rows(file, schema):
                pipe.send_bytes(row)
            pipe.send_bytes(b"")
        except MemoryError:
            pipe.send_bytes(f"Ereading it takes more than {MAX_MEMORY >> 20} MiB".encode())
        except ConnectionError:
            return
        except Exception as error:  # pyarrow raises its own errors and Python's
            pipe.send_bytes(f"E{str(error) or type(error).__name__}"[:2000].encode(errors="replace"))


def _rows(file: str, schema: pa.Schema) -> Iterator[pa.Buffer]:
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # the signal ends the process
    # pyarrow takes a string for a URI where it can, and would read a whole group of rows ahead.
    with pa.OSFile(file) as source, pq.ParquetFile(source, pre_buffer=False, buffer_size=2**20) as shard:
        found = shard.schema_arrow
        names = [name for name in found.names if name in schema.names]
        if len(set(names)) < len(names):
            raise ValueError("two columns have one name")
        for name in names:
            if not _fits(found.field(name).type, schema.field(name).type):
                raise ValueError(f"column {name}: expected {schema.field(name).type}, got {found.field(name).type}")
        for batch in shard.iter_batches(1, columns=names, use_threads=False):
            if batch.nbytes > MAX_ROW_BYTES:
                raise ValueError(f"expected at most {MAX_ROW_BYTES >> 20} MiB in a row, got {batch.nbytes >> 20}")
            columns = [_cast(batch.column(name), schema.field(name).type) for name in names]
            row = pa.RecordBatch.from_arrays(columns, names)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, row.schema) as stream:
                stream.write_batch(row)
            yield sink.getvalue()
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)


def _fits(got: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a type holds values of the wanted kind, in any width and layout."""
    types = pa.types
    if types.is_dictionary(got):
        return _fits(got.value_type, wanted)
    if types.is_list(wanted):
        lists = types.is_list(got) or types.is_large_list(got) or types.is_fixed_size_list(got)
        return bool(lists and _fits(got.value_type, wanted.value_type))
    if types.is_struct(wanted):
        kinds = {field.name: field.type for field in wanted}
        return bool(types.is_struct(got) and all(f.name in kinds and _fits(f.type, kinds[f.name]) for f in got))
    tests = {
        pa.int64(): (types.is_integer,),
        pa.float32(): (types.is_floating, types.is_integer),
        pa.bool_(): (types.is_boolean,),
        pa.string(): (types.is_string, types.is_large_string),
        pa.binary(): (types.is_binary, types.is_large_binary),
    }
    return any(test(got) for test in tests[wanted])


def _cast(column: Any, wanted: pa.DataType) -> Any:
    nested = pa.types.is_struct(wanted) or pa.types.is_struct(getattr(wanted, "value_type", wanted))
    return column if nested else column.cast(wanted)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, ConnectionError):  # the parent reads no more
        _serve(Connection(int(sys.argv[1])))
