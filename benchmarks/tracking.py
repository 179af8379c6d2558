"""The door to a tracking store: opening it without waiting for long, laying out a new one safely, and what its errors mean."""

import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

DEFAULT_URI = "sqlite:///mlflow.db"
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # they would tear our own bars apart
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# MLflow's own patience with a server is some ten minutes, without a word.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

AGAIN = "then run the same command again: finished seeds are kept"
LOCKED = "another process holds the database (a backup, a browser of databases, a hung one): let it end"
REMEDIES = {  # what a message holds: what to do
    r"disk is full|disk full|No space left": "free some space",
    r"database is locked": LOCKED,
    r"malformed|not a database|disk I/O error": "the file is damaged: restore it from a copy, or move it away to begin anew",
    r"(?i)readonly|read-only|Permission denied": "make the file and its folder writable",
    r"No module named|load plugin": "install the driver of that kind of database, or correct MLFLOW_TRACKING_URI",
    r"\b401\b|\b403\b|UNAUTHENTICATED|PERMISSION_DENIED": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
    "or MLFLOW_TRACKING_TOKEN, to those of a user who may write",
    r"CERTIFICATE|SSL": "name the server's certificate in MLFLOW_TRACKING_SERVER_CERT_PATH",
}
PASSING = r"database is locked|timed out|Max retries|Connection|refused|TEMPORARILY_UNAVAILABLE|\b50[0234]\b"

USER = r"(://[^/@:\s]*:|://(?=[^/?#\s]*@))((?<=:)\S*|[^/?#\s]*)@"  # an address up to its last @, its secret apart
QUERY = r"(?i)([?&][^=&\s]*(?:pass|pwd|token|secret|key)[^=&\s]*=)([^&\s]*)"
HALF = "duplicate column|already exists|no such (table|column)|out-of-date database schema|Can't locate revision"


class StoreError(Exception):
    """The tracking store can't be reached or written; the message names it and says what to do.

    Attributes:
        summary: which store, and what its error says.
        passing: it may well go by itself: a server that is away, a database that another process holds.
    """

    summary = ""
    passing = False


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def without_secrets(text: str, uri: str) -> str:
    """A text without the password or token that the address holds, nor that of any other address in it.

    A password may hold a raw ``@``, and libraries differ in where they part it: all up to the last one is masked. Outside of
    addresses it is masked where it stands alone and has four letters: a shorter one would garble the text.
    """
    secrets = [secret for before, secret in re.findall(USER, uri) if before.endswith(":")]
    secrets += [secret for _, secret in re.findall(QUERY, uri)]
    text = re.sub(QUERY, r"\1***", re.sub(USER, r"\1***@", text))
    for secret in secrets:
        _, *tails = secret.split("@")
        for start in range(len(tails)):
            text = text.replace("@".join([*tails[start:], ""]), "***@")
        for form in sorted({secret, unquote(secret), quote(unquote(secret), safe=""), *tails}, key=len, reverse=True):
            if len(form) > 3:
                text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", "***", text)
    return text


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn a failing store into one clear error; what earlier runs have logged stays in the store."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        raise explain(uri, error) from error


def explain(uri: str, error: Exception) -> StoreError:
    text = str(error).strip()
    known = {pattern: remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, text)}
    lines = [line for line in text.splitlines() if known and re.search(next(iter(known)), line)] or text.splitlines()
    first = without_secrets(lines[0].strip() if lines else type(error).__name__, uri)
    server = uri.startswith("http")
    other = "check MLFLOW_TRACKING_URI and that the " + (
        "server is up (`mlflow server`)" if server else "store is up and writable"
    )
    remedy = next(iter(known.values()), other)
    summary = f"tracking store {without_secrets(uri, uri)}: {first}"
    explained = StoreError(f"{summary}; {remedy}, {AGAIN}")
    explained.summary = summary
    explained.passing = bool(re.search(PASSING, text)) and remedy in (other, LOCKED)
    return explained


def connect(uri: str) -> MlflowClient:
    """MLflow's client of a store that answers; a new SQLite file is laid out first.

    Raises:
        StoreError: the store does not answer, is none, or goes with the process.
    """
    with explained(uri):
        if in_memory(uri):
            raise StoreError(
                f"tracking store {uri} is kept in memory, where finished seeds would be lost; "
                f"name a file in MLFLOW_TRACKING_URI, as in {DEFAULT_URI}"
            )
        if path := sqlite_file(uri):
            lay_out(uri, path)
        elif not uri.startswith("http") and "://" in uri and not uri.startswith(("file:", "databricks", "sqlite:")):
            engine = sqlalchemy.create_engine(uri)  # once: MLflow tries for a hundred seconds
            engine.connect().close()
            engine.dispose()
        try:
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
        except (MlflowException, SQLAlchemyError) as error:
            if path and re.search(HALF, str(error)):
                raise half_done(uri, path) from error
            raise
    return client


def half_done(uri: str, path: Path) -> StoreError:
    """The error for a SQLite file whose tables are not those of this version of MLflow."""
    try:
        empty = not ask(path, "SELECT 1 FROM runs LIMIT 1")
    except sqlite3.Error:
        empty = True
    if empty:
        return StoreError(
            f"tracking store {uri}: its first layout was left half done (a process was killed at it) and it holds no runs; "
            f"remove {path}, then run the same command again"
        )
    return StoreError(
        f"tracking store {uri} has the layout of another version of MLflow; "
        f"copy {path}, then `mlflow db upgrade {uri}`, or install that version"
    )


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store, None for any other store."""
    if not uri.startswith("sqlite:"):
        return None
    name = sqlalchemy.make_url(uri).database
    return Path(name).absolute() if name and name != ":memory:" and not name.startswith("file:") else None


def in_memory(uri: str) -> bool:
    """Whether a store is a SQLite database that goes with the process."""
    if not uri.startswith(("sqlite:", "sqlite+")):
        return False
    url = sqlalchemy.make_url(uri)
    return not url.database or ":memory:" in url.database or url.query.get("mode") == "memory"


def lay_out(uri: str, path: Path) -> None:
    """Lay out a new SQLite store under another name, and move it to its own: it is there whole or not at all.

    MLflow takes seconds for it, in steps that a killed process leaves half done for good, and that two processes do in each
    other's way. The lock beside the file goes with the process that holds it; it is not needed once the file is there.
    """
    if is_laid_out(uri, path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, part = path.with_name(f".{path.name}.lock"), path.with_name(f".part-{path.name}")
    with lock.open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.truncate(0)
        print(os.getpid(), file=held, flush=True)  # for people who wonder who holds it
        if not is_laid_out(uri, path):
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            try:
                part.unlink(missing_ok=True)
                SqlAlchemyStore(f"sqlite:///{part}", "./mlruns").engine.dispose()
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            lock.unlink()


def is_laid_out(uri: str, path: Path) -> bool:
    """Whether a SQLite file holds tables; False for a missing or empty one.

    Raises:
        StoreError: it is a folder, or a link to nothing.
        sqlite3.Error: it is no database, or can't be read.
    """
    if path.is_dir():
        raise StoreError(
            f"tracking store {uri}: {path} is a folder; name a file in it, as in sqlite:///{path}/mlflow.db"
        )
    if path.is_symlink() and not path.exists():  # what it leads to may hold runs, on a disk that is away
        raise StoreError(
            f"tracking store {uri}: {path} is a link to {os.path.realpath(path)}, which is not there; "
            "bring it back, or remove the link to begin anew"
        )
    if not path.exists() or not path.stat().st_size:
        return False
    return bool(ask(path, "SELECT name FROM sqlite_master WHERE type = 'table'"))


def ask(path: Path, query: str) -> list[tuple[str, ...]]:
    """The answer of a SQLite file to a query.

    It is opened for writing, though never made: a write that a killed process left half done must be rolled back first, which
    a reader by its mode may not do ("attempt to write a readonly database").
    """
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as database:
        return database.execute(query).fetchall()
