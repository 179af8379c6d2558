"""Opening a store: whoever comes first, whatever lies there, each fault is one error with its remedy and without a password."""

import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from benchmarks import tracking
from benchmarks.tracking import StoreError, connect, explain


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that five processes opened at once when it was not there, of which the first was killed in the middle."""
    path = tmp_path_factory.mktemp("store") / "m.db"
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=connect, args=(f"sqlite:///{path}",)) for _ in range(5)]
    for process in processes:
        process.start()
    part, lock = path.with_name(".part-m.db"), path.with_name(".m.db.lock")
    while not (part.exists() and part.stat().st_size > 100_000):  # a tenth of the layout
        assert not path.exists()
        time.sleep(0.002)
    killed = int(lock.read_text())
    os.kill(killed, signal.SIGKILL)
    assert not path.exists()
    for process in processes:
        process.join()
    assert sorted(process.exitcode or 0 for process in processes) == [-9, 0, 0, 0, 0]
    assert os.listdir(path.parent) == ["m.db"]
    return path


def refused(uri: str) -> str:
    with pytest.raises(StoreError) as caught:
        connect(uri)
    return str(caught.value)


def test_five_processes_open_a_new_store_at_once_and_a_killed_one_leaves_no_half_of_it(laid_out: Path) -> None:
    assert [e.name for e in connect(f"sqlite:///{laid_out}").search_experiments()] == ["Default"]


def die_within_a_write(path: Path) -> None:
    """Be killed with half a transaction in the database, the way back in the journal beside it."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA cache_size = 1")  # so that pages are written before the commit
    database.execute("BEGIN")
    database.execute("CREATE TABLE torn AS SELECT randomblob(100000)")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_write_cut_short_by_a_kill_is_rolled_back(laid_out: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(laid_out, tmp_path))
    process = multiprocessing.get_context("fork").Process(target=die_within_a_write, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -9
    journal = path.with_name("m.db-journal")
    assert journal.stat().st_size, "nothing to roll back"
    assert path.read_bytes() != laid_out.read_bytes()
    assert [e.name for e in connect(f"sqlite:///{path}").search_experiments()] == ["Default"]
    assert not journal.exists()
    assert path.read_bytes() == laid_out.read_bytes()


def test_a_layout_left_half_done_is_named_and_may_be_removed(laid_out: Path, tmp_path: Path) -> None:
    path = shutil.copy(laid_out, tmp_path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE logged_models")
        database.execute("UPDATE alembic_version SET version_num = '0a8213491aaa'")
        database.commit()
    message = refused(f"sqlite:///{path}")
    assert (
        f"its first layout was left half done (a process was killed at it) and it holds no runs; remove {path}"
        in message
    )


def test_the_layout_of_another_version_with_runs_in_it_is_not_to_be_removed(laid_out: Path, tmp_path: Path) -> None:
    path = shutil.copy(laid_out, tmp_path)
    uri = f"sqlite:///{path}"
    connect(uri).create_run("0")
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = '0a8213491aaa'")
        database.commit()
    shutil.copy(path, tmp_path / "other.db")  # opened anew, by a name that MLflow has not seen
    message = refused(f"sqlite:///{tmp_path}/other.db")
    assert "has the layout of another version of MLflow" in message
    assert "mlflow db upgrade" in message


def test_a_link_to_nothing_stays_and_is_named(tmp_path: Path) -> None:
    link = tmp_path / "m.db"
    link.symlink_to(tmp_path / "away" / "real.db")
    assert f"{link} is a link to {tmp_path}/away/real.db, which is not there; bring it" in refused(f"sqlite:///{link}")
    assert os.listdir(tmp_path) == ["m.db"]
    assert link.is_symlink()


def test_a_folder_a_text_and_a_torn_database_are_refused_at_once(laid_out: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    assert f"{tmp_path} is a folder; name a file in it" in refused(f"sqlite:///{tmp_path}")
    text = tmp_path / "text.db"
    text.write_text("no database, though long enough to be one " * 50)
    torn = tmp_path / "torn.db"
    torn.write_bytes(laid_out.read_bytes()[:70_000])
    for path in (text, torn):
        before = path.read_bytes()
        assert "the file is damaged: restore it from a copy, or move it away" in refused(f"sqlite:///{path}")
        assert path.read_bytes() == before
    assert time.monotonic() - began < 5  # MLflow alone tries for a hundred seconds


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("sqlite:////dev/null/m.db", "check MLFLOW_TRACKING_URI and that the store is up and writable"),
        ("postgresql://me:pass%2Fword@127.0.0.1:9/db", "install the driver of that kind of database"),
        ("sqlight:///m.db", "MLFLOW_TRACKING_URI"),
        ("http://me:pass%2Fword@127.0.0.1:9", "check MLFLOW_TRACKING_URI and that the server is up"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_error_without_its_password(
    uri: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    message = refused(uri)
    assert words in message
    assert "pass" not in message
    assert "\n" not in message


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of a server that gives everybody the same answer; nobody any if it is empty."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            callers = []
            while True:
                try:
                    callers.append(listening.accept()[0])
                except OSError:
                    return
                if answer:
                    callers[-1].recv(65536)
                    callers[-1].sendall(answer)
                    callers[-1].close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(b"") as uri:
        assert "check MLFLOW_TRACKING_URI and that the server is up" in refused(uri)


def test_a_server_that_wants_a_password_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"You are not authenticated."
    head = f"HTTP/1.1 401 Unauthorized\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    with answering(head + body) as uri:
        assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in refused(uri)


def test_our_patience_with_a_server_is_short_unless_the_user_says_otherwise() -> None:
    assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 30
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 1


@pytest.mark.parametrize(
    ("error", "passing", "words"),
    [
        (OSError(28, "No space left on device"), False, "free some space"),
        (MlflowException("(sqlite3.OperationalError) database or disk is full"), False, "free some space"),
        (MlflowException("(sqlite3.OperationalError) database is locked"), True, "another process holds the database"),
        (MlflowException("attempt to write a readonly database"), False, "make the file and its folder writable"),
        (MlflowException("API request to http://x failed: Max retries exceeded"), True, "check MLFLOW_TRACKING_URI"),
        (MlflowException("x failed with error code 503 != 200"), True, "check MLFLOW_TRACKING_URI"),
        (MlflowException("PERMISSION_DENIED: no"), False, "MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_each_kind_of_failure_has_its_remedy_and_some_go_by_themselves(
    error: Exception, passing: bool, words: str
) -> None:
    found = explain("sqlite:///m.db", error)
    assert words in str(found)
    assert found.passing is passing


def test_no_password_gets_into_a_message() -> None:
    uri = "https://me:s3cr%2Ft@host/x?token=abc"
    error = MlflowException("no https://me:s3cr%2Ft@host/x?token=abc, s3cr/t; https://you:other@elsewhere")
    text = str(explain(uri, error))
    assert not any(secret in text for secret in ("s3cr", "abc", "other@"))
    assert "https://me:***@host" in text
    assert tracking.without_secrets("no colon@here", "sqlite:///m.db") == "no colon@here"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:pa@secret@host/x", "http://me:***@host/x"),
        ("postgresql://me:p@ssw0rd@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:pass/w0rd@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:a@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&sslpassword=secret", "postgresql://host/db?user=me&sslpassword=***"),
        ("mysql://host/db?passwd=secret&x=1", "mysql://host/db?passwd=***&x=1"),
        ("https://TOKEN@host", "https://***@host"),
        ("ftp://me:secret@host/x", "ftp://me:***@host/x"),
        ("http://[::1]:5000/a", "http://[::1]:5000/a"),
        ("sqlite:////tmp/a@b:c.db", "sqlite:////tmp/a@b:c.db"),
    ],
)
def test_an_address_is_shown_without_its_secret_and_else_as_it_is(uri: str, shown: str) -> None:
    assert tracking.without_secrets(f"a bad address: {uri}", uri) == f"a bad address: {shown}"


def test_outside_of_an_address_a_password_is_masked_where_it_stands_alone() -> None:
    said = 'no host "ssw0rd@host"; a password: p@ssw0rd, ssw0rd, ssw0rds'
    masked = 'no host "***@host"; a password: ***, ***, ssw0rds'
    assert tracking.without_secrets(said, "postgresql://me:p@ssw0rd@host/db") == masked
    assert tracking.without_secrets(said, "postgresql://me:a@host/db") == said


@pytest.mark.parametrize(
    "uri",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite://", "sqlite:///file:x?mode=memory&uri=true"],
)
def test_a_store_in_memory_is_refused(uri: str) -> None:
    assert f"tracking store {uri} is kept in memory, where finished seeds would be lost; name a file" in refused(uri)


@pytest.mark.parametrize(
    ("text", "shown", "remedy"),
    [
        (
            "(raised as a result of Query-invoked autoflush)\ndatabase is locked\n[SQL: x]",
            "database is locked",
            "let it end",
        ),
        (
            "[Errno 30] Read-only file system: 'x'",
            "[Errno 30] Read-only file system: 'x'",
            "make the file and its folder writable",
        ),
        ("what nobody knows\nand more", "what nobody knows", "check MLFLOW_TRACKING_URI"),
    ],
)
def test_the_line_that_says_what_is_wrong_is_shown(text: str, shown: str, remedy: str) -> None:
    found = explain("sqlite:///m.db", OSError(text))
    assert found.summary == f"tracking store sqlite:///m.db: {shown}"
    assert remedy in str(found)
