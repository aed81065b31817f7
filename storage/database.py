"""Opening the history file: the right version, one writer, several readers, and trouble told in one sentence.

Nothing is written before the file has proved to be ours and not newer than we are; before a migration the file
is copied. One connection writes (SQLite allows no more anyway), a few others read beside it (WAL), so a long
search never holds up a reply that is being saved. Several apps may share one file: SQLite's locks see to that.

Exceptions::

    StoreError          one clear sentence for people: what happened and what to do
    └── StoreBusyError  it may work in a moment: another program holds the lock, or the disk is full
"""

from __future__ import annotations

import os
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from sqlite_utils import Database

from storage.codec import now
from storage.migrations import APPLICATION_ID, migrations

BUSY_TIMEOUT_S = 2.0
"""How long a statement waits for another app's write to end."""
CLOSE_PATIENCE_S = 5.0
BACKUPS_KEPT = 3
READERS = 4


class StoreError(Exception):
    """The history cannot be read or written; the message says why and what to do."""


class StoreBusyError(StoreError):
    """The same, but the cause may pass by itself."""


def sentence(error: sqlite3.Error, path: Path) -> StoreError:
    """What SQLite reports, as a StoreError people understand."""
    text = str(error).lower()
    if "full" in text:
        return StoreBusyError(
            f"The disk is full, so the history {path} is not being written. Free some space."
        )
    if "locked" in text or "busy" in text:
        return StoreBusyError(
            f"Another program is holding the history {path} locked. Close it, or wait for it."
        )
    if "readonly" in text or "read-only" in text or "attempt to write" in text:
        return StoreBusyError(
            f"The history {path} is read-only. Allow writing to it and its folder, or choose another --data-dir."
        )
    if "unable to open" in text:
        return StoreBusyError(
            f"The history {path} cannot be opened. Check that its folder exists and is writable."
        )
    if "interrupted" in text:
        return StoreError(f"It took too long, so it was given up; the history {path} is as it was.")
    if "disk i/o" in text:
        return StoreBusyError(f"The disk reported an error while the history {path} was in use ({error}).")
    if "malformed" in text or "not a database" in text:
        return StoreError(
            f"The history {path} is damaged or not a database ({error}); it was left as it is. Move it away to "
            f"start afresh, or put back a copy from {path.parent / 'backups'}."
        )
    return StoreError(f"The history {path} could not be used: {error}.")


class HistoryFile:
    """The open database: `writing()` and `reading()` hand out connections; both raise StoreError."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._write_lock = threading.RLock()
        self._readers: queue.LifoQueue[Database] = queue.LifoQueue()
        self._reader_slots = threading.BoundedSemaphore(READERS)
        self._closed = False
        try:
            self._refuse_strangers()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            make_private(self.path)
            self._writer = self._connect()
            try:
                self._migrate()
            except BaseException:
                self._writer.close()
                raise
        except sqlite3.Error as error:
            raise sentence(error, self.path) from error
        except PermissionError as error:
            raise StoreError(
                f"The history {self.path} is read-only or belongs to someone else. Allow writing to it and its "
                "folder, or choose another --data-dir."
            ) from error
        except OSError as error:
            raise StoreError(
                f"The history {self.path} cannot be opened: {error.strerror or error}. "
                "Choose another --data-dir or mend the permissions."
            ) from error

    def close(self) -> None:
        """End all connections; SQLite then folds the write-ahead log into the file.

        What still writes is given CLOSE_PATIENCE_S to end, and is then interrupted: an app can always be ended.
        """
        patient = self._write_lock.acquire(timeout=CLOSE_PATIENCE_S)
        if not patient:
            self._writer.conn.interrupt()
            if not self._write_lock.acquire(timeout=CLOSE_PATIENCE_S):
                self._closed = True  # the connection belongs to a thread that does not end; the process will
                return
        try:
            if self._closed:
                return
            self._closed = True
            while not self._readers.empty():
                self._readers.get_nowait().close()
            self._writer.close()
        finally:
            self._write_lock.release()

    @contextmanager
    def writing(self) -> Iterator[Database]:
        """The one writing connection, inside a transaction that is all or nothing."""
        with self._locked(), self._told():
            self._check_open()
            self._writer.conn.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.conn.execute("COMMIT")
            except BaseException:
                self._writer.rollback()
                raise

    @contextmanager
    def maintaining(self) -> Iterator[Database]:
        """The writing connection outside a transaction: for VACUUM and the like."""
        with self._locked(), self._told():
            self._check_open()
            yield self._writer

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """A reading connection that sees one consistent state."""
        with self._reader_slots, self._told():
            self._check_open()
            try:
                db = self._readers.get_nowait()
            except queue.Empty:
                db = self._connect()
                db.conn.execute("PRAGMA query_only = 1")
            try:
                db.conn.execute("BEGIN")
                yield db
            finally:
                db.rollback()
                self._readers.put(db) if not self._closed else db.close()

    def backups(self) -> list[Path]:
        """The copies made before migrations, oldest first."""
        return sorted((self.path.parent / "backups").glob(f"{self.path.stem}-*.sqlite3"))

    def copy_to(self, target: Path) -> None:
        """A consistent copy while others write; `target` must not exist or be empty. Raises StoreError."""
        with self._told():
            db = self._connect()
            try:
                db.conn.execute("VACUUM INTO ?", [str(target)])
            finally:
                db.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._write_lock.acquire(timeout=BUSY_TIMEOUT_S):
            raise StoreBusyError(f"The history {self.path} is busy with an import or a clean-up.")
        try:
            yield
        finally:
            self._write_lock.release()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise sentence(error, self.path) from error

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"The history {self.path} has been closed.")

    def _connect(self) -> Database:
        connection = sqlite3.connect(
            str(self.path), timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA foreign_keys = 1")
        # Committed rows survive a kill -9 of the app; a power cut may lose the last seconds, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -16384")
        connection.execute("PRAGMA secure_delete = 1")
        return Database(connection)

    def _refuse_strangers(self) -> None:
        """Look before touching: raises StoreError for a newer version's file and for another program's."""
        if self.path.is_dir():
            raise StoreError(
                f"The history {self.path} cannot be opened: it is a folder. Choose another --data-dir."
            )
        if not self.path.exists() or self.path.stat().st_size == 0:
            return
        in_use = self.path.with_name(self.path.name + "-wal").exists()
        # Even a reader would leave files beside a file that nobody has open, unless it promises to be alone.
        mode = "mode=ro" if in_use else "mode=ro&immutable=1"
        connection = sqlite3.connect(f"{uri(self.path.absolute())}?{mode}", uri=True, timeout=BUSY_TIMEOUT_S)
        try:
            db = Database(connection)
            known = {migration.name for migration in migrations.pending(Database(memory=True))}
            applied = {migration.name for migration in migrations.applied(db)}
            newer = sorted(applied - known)
            if newer:
                raise StoreError(
                    f"The history {self.path} was written by a newer version of Backend Arena (it has "
                    f"{newer[-1]}); it was left untouched. Update the app, or choose another --data-dir."
                )
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            if not applied and (application != APPLICATION_ID and db.table_names()):
                raise StoreError(
                    f"{self.path} is another program's database; it was left untouched. Choose another --data-dir."
                )
        finally:
            connection.close()

    def _migrate(self) -> None:
        _patiently(self._writer.conn, "PRAGMA journal_mode = WAL")
        if migrations.pending(self._writer) and migrations.applied(self._writer):
            self._back_up()
        # Two apps may start at once: the second waits here and then finds nothing left to do.
        _patiently(self._writer.conn, "BEGIN IMMEDIATE")
        try:
            if migrations.pending(self._writer):
                migrations.apply(self._writer)
            self._writer.conn.execute("COMMIT")
        except BaseException:
            self._writer.rollback()
            raise

    def _back_up(self) -> None:
        folder = self.path.parent / "backups"
        folder.mkdir(exist_ok=True)
        moment = now().replace(":", "").replace(".", "")
        backup = (
            folder / f"{self.path.stem}-{moment}-before-{migrations.pending(self._writer)[0].name}.sqlite3"
        )
        make_private(backup)
        self._writer.conn.execute("VACUUM INTO ?", [str(backup)])
        for old in self.backups()[:-BACKUPS_KEPT]:
            old.unlink(missing_ok=True)


def uri(path: PurePath) -> str:
    """An absolute path as SQLite reads it: a share stands in the path, since SQLite refuses any host but this one.

    https://www.sqlite.org/uri.html
    """
    return (
        path.as_uri().replace("file://", "file:////", 1) if path.drive.startswith("\\\\") else path.as_uri()
    )


def make_private(path: Path) -> None:
    """Create the file if need be, readable only by its user (on Windows the profile folder sees to that)."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    if sys.platform != "win32" and path.stat().st_uid == os.getuid():
        path.chmod(0o600)


OUR_FOLDERS = ("backups", "cache", "environments", "logs", "models")


def close_to_others(data_dir: Path) -> None:
    """Take from other users of this PC what an earlier version left readable: our folders, and the logs in them.

    The data directory itself may be a folder that holds other things, too; then it stays as it is.
    """
    if sys.platform == "win32":
        return  # the profile folder sees to that
    for name in OUR_FOLDERS:
        folder = data_dir / name
        for path in (folder, *folder.glob("*.log*")):
            with suppress(OSError):
                if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
                    path.chmod(path.stat().st_mode & 0o700)


def _patiently(connection: sqlite3.Connection, statement: str) -> None:
    """Execute while another app may be opening the same file: SQLite does not always wait by itself then."""
    deadline = time.monotonic() + 10
    while not _done(connection, statement, last_try=time.monotonic() > deadline):
        time.sleep(0.05)


def _done(connection: sqlite3.Connection, statement: str, *, last_try: bool) -> bool:
    try:
        connection.execute(statement)
    except sqlite3.OperationalError as error:
        if last_try or "locked" not in str(error):
            raise
        return False
    return True
