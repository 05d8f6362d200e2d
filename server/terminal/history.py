"""What was typed in earlier chats: a private file of bounded size, one JSON string a line."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import platformdirs
from prompt_toolkit.history import History

MAX_ENTRIES = 1000
MAX_ENTRY_CHARS = 16_384
"""A longer message is remembered while the chat runs, not kept."""

_MAX_FILE_BYTES = 8 * 2**20


def history_path() -> Path:
    """Return where the history is kept, in the user's directory for the state of programs."""
    return platformdirs.user_state_path("draftline") / "chat_history.jsonl"


class FileHistory(History):
    """Entries of a file that only its owner can read; without one the history lasts as long as the chat."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.error: str | None = None  # why nothing is kept
        try:
            self._trim()
        except OSError as error:
            self.error = f"{path}: the history is not kept: {error.strerror or error}"

    def load_history_strings(self) -> Iterable[str]:
        """Yield the entries, newest first."""
        return reversed(self._read()[-MAX_ENTRIES:])

    def store_string(self, string: str) -> None:
        """Append an entry."""
        if self.error is not None or len(string) > MAX_ENTRY_CHARS:
            return
        try:
            with self._open(self._path, os.O_APPEND) as file:
                file.write(json.dumps(string) + "\n")
        except OSError as error:
            self.error = f"{self._path}: the history is not kept: {error.strerror or error}"

    def _trim(self) -> None:
        """Make the directory, take rights from others, and keep the newest entries of a file that grew."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._open(self._path, os.O_APPEND) as file:
            os.fchmod(file.fileno(), 0o600)
            is_large = os.fstat(file.fileno()).st_size > _MAX_FILE_BYTES
        entries = self._read()
        if len(entries) <= 2 * MAX_ENTRIES and not is_large:
            return
        part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        with self._open(part, os.O_TRUNC) as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries[-MAX_ENTRIES:])
        part.replace(self._path)

    def _open(self, path: Path, flags: int) -> TextIO:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600), "w", encoding="utf-8")

    def _read(self) -> list[str]:
        """Return the entries, oldest first; lines that are none, as of a crash, are passed over."""
        try:
            with self._path.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _MAX_FILE_BYTES))
                lines = file.read(_MAX_FILE_BYTES).splitlines()
        except OSError:
            return []
        return [entry for entry in map(_parse, lines) if entry is not None]


def _parse(line: bytes) -> str | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, str) and len(entry) <= MAX_ENTRY_CHARS else None
