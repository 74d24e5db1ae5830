"""A real PostgreSQL server on loopback, from Debian's packages, for the time of a block."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@dataclass(frozen=True)
class Postgres:
    """Where the server listens, and its password."""

    port: int
    password: str

    def url(self, base: str, scheme: str = "postgresql", password: str = "") -> str:
        """Return the address of a data base, made if it is not there."""
        return f"{scheme}://lab:{password or self.password}@127.0.0.1:{self.port}/{base}"

    def ask(self, base: str, words: str) -> list[tuple[object, ...]]:
        """Return the rows that a query finds."""
        link = psycopg2.connect(self.url(base))
        link.autocommit = True
        with link.cursor() as cursor:
            cursor.execute(words)
            rows = cursor.fetchall() if cursor.description else []
        link.close()
        return rows


@contextmanager
def serving(*bases: str) -> Iterator[Postgres]:
    """Serve empty data bases while the block runs; it asks for a password."""
    assert BINARIES is not None
    # Not pytest's folder: that is root's alone, and PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="reflow-postgres-"))
    user = "postgres" if os.geteuid() == 0 else None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = Postgres(free.getsockname()[1], secrets.token_hex(8))
    (folder / "password").write_text(server.password)
    if user:
        for path in (folder, folder / "password"):
            os.chown(path, pwd.getpwnam(user).pw_uid, -1)

    def run(program: str, *words: str) -> None:
        command = [str(BINARIES / program), "-D", str(folder / "data"), *words]
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    try:
        words = ("-U", "lab", "--auth=scram-sha-256", f"--pwfile={folder}/password", "-E", "UTF8")
        run("initdb", *words)
        listen = f"-p {server.port} -c listen_addresses=127.0.0.1 -k {folder}"
        run("pg_ctl", "-w", "-o", listen, "-l", str(folder / "log"), "start")
        try:
            for base in bases:
                server.ask("postgres", f"create database {base}")
            yield server
        finally:
            run("pg_ctl", "-m", "fast", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
