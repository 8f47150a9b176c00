"""A JSON document and a file of tensors, written together: hashed, atomic, and never a pickle.

Renaming the JSON document into place commits a write. The tensors are first written beside it under a name with their
hash, and renamed last, so a process that dies at any moment leaves the old or the new pair readable. Writers lock the
folder by its file ``.lock``, so what another save left there is from one that died. Readers need no lock: one that
meets a change reads again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
from filelock import FileLock, Timeout
from torch import Tensor
from typing_extensions import Self

from vlp_gym.errors import CheckpointError, DatasetError

_FOREIGN = {
    b"PK\x03\x04": "a zip archive, as torch.save writes it",
    b"\x80": "a pickle",
    b"\x93NUMPY": "a NumPy .npy file",
}
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".npy", ".pkl"}
_MAX_JSON_BYTES = 16 * 2**20
_WAIT_S = 60.0
_READS = 100  # one is in vain only if a whole write ended meanwhile


def write_pair(folder: str | Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor], *, stem: str) -> None:
    """Write the document and ``<stem>.safetensors``, or leave existing files unchanged.

    Args:
        folder: created if missing; other files in it stay.
        document: JSON values; the keys "sha256" (of the tensor file) and "config_sha256" (of the rest) are added.
        tensors: tensors on any device; they may share memory.
        stem: name of the tensor file; with "model" the document is ``config.json``, else ``<stem>.json``.

    Raises:
        CheckpointError: the disk is full, the folder is not writable, another process writes to it for a minute, or
            the document is not JSON.
    """
    folder = Path(folder)
    data = safetensors.torch.save({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    signed = {**document, "config_sha256": _document_hash(document), "sha256": digest}
    text = json.dumps(signed, indent=2, sort_keys=True, allow_nan=False) + "\n"
    try:
        with locked(folder, wait_s=_WAIT_S):
            staged, written = _staged(folder, stem, digest), folder / document_name(stem)
            try:
                write_atomic(staged, data)
                write_atomic(written, text.encode())
            finally:  # an interrupt leaves the old pair or the new one, and no third file; also one that comes here
                try:
                    _settle(staged, folder / f"{stem}.safetensors", written, text)
                except KeyboardInterrupt:
                    _settle(staged, folder / f"{stem}.safetensors", written, text)
                    raise
            _clean(folder, rf"\.{{1,2}}{re.escape(stem)}-[0-9a-f]{{16}}\.safetensors(\..*\.tmp)?")
            _sync_folder(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: could not write the checkpoint ({error.strerror or error}); an earlier one there is intact"
        ) from error


def _settle(staged: Path, tensors: Path, document: Path, text: str) -> None:
    """Give the staged tensors their name if their document is written, else delete them."""
    if not (document.exists() and document.read_bytes() == text.encode()):
        staged.unlink(missing_ok=True)
    elif staged.exists():
        os.replace(staged, tensors)


def read_pair(folder: str | Path, *, stem: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_pair` wrote, after checking both hashes.

    Returns:
        The document without its hashes, and the tensors on the CPU. Their content is not checked, see
        `vlp_gym.schema`.

    Raises:
        CheckpointError: a file is missing, damaged, or of another kind.
    """
    folder = Path(folder)
    before = None
    for _ in range(_READS):
        signed = read_document(folder, stem=stem)
        try:
            tensors = _read_tensors(folder, stem, signed["sha256"])
        except CheckpointError:
            if signed == before:
                raise
            before = signed
        else:
            return {key: value for key, value in signed.items() if key not in ("sha256", "config_sha256")}, tensors
    raise CheckpointError(f"{folder}: another process wrote {document_name(stem)} during each of {_READS} reads")


def read_document(folder: str | Path, *, stem: str) -> dict[str, Any]:
    """Read and check only the JSON document, with its two hashes.

    Raises:
        CheckpointError: it is missing, damaged, or names custom code ("auto_map").
    """
    folder = Path(folder)
    path = folder / document_name(stem)
    if not os.path.isdir(folder):
        kind = "a file" if os.path.exists(folder) else "missing"
        raise CheckpointError(
            f"{folder}: expected a folder with {path.name} and {stem}.safetensors, but it is {kind}; "
            "pickle files (.bin, .pt, .pth) are never loaded"
        )
    try:
        signed = json.loads(read_file(path, _MAX_JSON_BYTES), parse_constant=_refuse_constant)
        if not isinstance(signed, dict):
            raise ValueError(f"expected an object, got {type(signed).__name__}")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a valid JSON document ({error})") from error
    if "auto_map" in signed:
        raise CheckpointError(f"{path}: asks for code of its own (auto_map); vlp_gym never runs code from a checkpoint")
    for key in ("sha256", "config_sha256"):
        # The digest becomes a file name: other characters than hexadecimal digits could point to another folder.
        if not isinstance(signed.get(key), str) or not re.fullmatch("[0-9a-f]{64}", signed[key]):
            raise CheckpointError(f"{path}: not a vlp_gym checkpoint, the entry {key!r} is missing or no SHA-256")
    rest = {key: value for key, value in signed.items() if key not in ("sha256", "config_sha256")}
    if _document_hash(rest, f"{path}: a checkpoint's config") != signed["config_sha256"]:
        raise CheckpointError(
            f"{path}: damaged or edited (its entries do not have the SHA-256 that it states); "
            "change a model in Python and save it again"
        )
    return signed


def document_name(stem: str) -> str:
    """Name of the JSON document beside ``<stem>.safetensors``."""
    return "config.json" if stem == "model" else f"{stem}.json"


def read_file(path: Path, limit: float) -> bytes:
    """The bytes of a regular file: a pipe, a device or a folder is not opened, nor is more than the limit read.

    Raises:
        CheckpointError: it is missing, larger than the limit, or no file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: expected a file, but it is a folder, a pipe or a device")
        if status.st_size > limit:
            raise CheckpointError(f"{path}: {status.st_size} bytes are more than the {limit:.0f} that are read")
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(status.st_size)
    except FileNotFoundError as error:
        unsafe = sorted(p.name for p in path.parent.glob("*") if p.suffix in _PICKLED)
        hint = f"; {', '.join(unsafe)} may hold pickles, which are never loaded" if unsafe else ""
        raise CheckpointError(f"{path}: missing{hint}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: could not be read ({error.strerror})") from error


@contextlib.contextmanager
def locked(folder: Path, name: str = ".lock", wait_s: float = 0.0) -> Iterator[None]:
    """Hold a folder's lock, a file that stays there; a process that dies gives it up. The folder is created if missing.

    Raises:
        CheckpointError: another process still holds it after `wait_s`.
    """
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        owner = ""
        with contextlib.suppress(CheckpointError):
            owner = read_file(path, 32).decode(errors="replace")
        raise CheckpointError(
            f"{folder}: process {owner or 'unknown'} is writing there; wait for its end, or choose another folder"
        ) from None
    try:
        path.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


class Packed:
    """Base of what is saved as ``<stem>.json`` and ``<stem>.safetensors``, or within something larger.

    Subclasses define `pack`, which returns a document and tensors, and the class method `unpack`, its inverse, which
    checks everything in them.
    """

    stem: ClassVar[str]
    pack: Any
    unpack: Any

    def save(self, folder: str | Path) -> None:
        """Write both files, or raise CheckpointError, also for content that `load` would refuse."""
        document, tensors = self.pack()
        self.unpack(document, tensors, f"{folder} was not saved")
        write_pair(folder, document, tensors, stem=self.stem)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote, or raise CheckpointError."""
        where = Path(folder) / document_name(cls.stem)
        loaded: Self = cls.unpack(*read_pair(folder, stem=cls.stem), where)
        return loaded


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that at any moment it has either the old or the complete new content.

    What killed processes of this computer left of earlier writes is deleted.
    """
    host = _host()
    temporary = path.with_name(f".{path.name}.{host}-{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _clean(path.parent, rf"\.{re.escape(path.name)}\.{host}-(?P<pid>\d+)-\d+\.tmp")
    _sync_folder(path.parent)


def check_new(out: Path) -> None:
    """Raise DatasetError unless there is no such folder, or nothing in it."""
    found = "a file" if out.exists() and not out.is_dir() else "files" if out.exists() and any(out.iterdir()) else ""
    if found:
        raise DatasetError(f"{out}: expected a new or an empty folder, found {found}; choose another --out")


@contextlib.contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that becomes `out` at the end of the block; after an error it is deleted.

    What killed processes of this computer left of earlier ones is deleted.

    Raises:
        DatasetError: `out` is a file or has files, or the folder cannot be written.
    """
    out = out.resolve()
    check_new(out)
    host = _host()
    folder = out.with_name(f".{out.name}.{host}-{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clean(out.parent, rf"\.{re.escape(out.name)}\.{host}-(?P<pid>\d+)\.tmp")
        shutil.rmtree(folder, ignore_errors=True)  # of a dead process that had our number
        folder.mkdir()
        yield folder
        os.replace(folder, out)
        _sync_folder(out.parent)
    except OSError as error:
        raise DatasetError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _host() -> str:
    """This computer, as the names of staged files have it."""
    return re.sub(r"\W", "_", os.uname().nodename)


def _clean(folder: Path, pattern: str) -> None:
    """Delete the files and folders whose whole names match; those of a process ("pid") only if it has died."""
    for name in os.listdir(folder):
        found = re.fullmatch(pattern, name)
        if found and not _lives(found.groupdict().get("pid")):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _lives(pid: str | None) -> bool:
    try:
        if pid is not None:
            os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid is not None


def _read_tensors(folder: Path, stem: str, digest: str) -> dict[str, Tensor]:
    path = _staged(folder, stem, digest)
    if not path.is_file():  # it is there if a save died before its last step
        path = folder / f"{stem}.safetensors"
    data = read_file(path, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    if hashlib.sha256(data).hexdigest() != digest:
        kind = next((kind for magic, kind in _FOREIGN.items() if data.startswith(magic)), None)
        if kind is not None and data[8:9] != b"{":  # the first 8 bytes of a safetensors file may be any number
            raise CheckpointError(f"{path}: expected a safetensors file, but it is {kind}; nothing of it was loaded")
        raise CheckpointError(
            f"{path}: truncated or damaged ({len(data)} bytes do not have the SHA-256 that {document_name(stem)} "
            "states); fetch or save the checkpoint again"
        )
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # the parser raises several kinds, its own and Python's, for a malformed header
        raise CheckpointError(f"{path}: not a valid safetensors file ({error})") from error


def _staged(folder: Path, stem: str, digest: str) -> Path:
    return folder / f".{stem}-{digest[:16]}.safetensors"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _document_hash(document: Mapping[str, Any], what: str = "a checkpoint's config") -> str:
    try:
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} takes JSON values only: {error}") from error
    return hashlib.sha256(canonical.encode()).hexdigest()


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
