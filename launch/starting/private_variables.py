"""Environment variables that must reach the ranks on other hosts and may not stand in a command line.

DeepSpeed gives variables to pdsh as words of a remote command: every user of either host can read them in its process
list, and a shell parses them. So secrets, and values that a shell would change, go through files in the run directory:
one for each rank, mode 0600, removed once the rank has read it.
"""

import json
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from data_shards.places import redact

DATA = "DMD_DATA"
"""Environment variable: the full URL of the shards, where it holds a secret."""
TOKEN = "DMD_PRIVATE"
"""Environment variable: names the directory of the files."""
_FOLDER = ".private-"
_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASS|KEY|CREDENTIALS?|AUTH)(_|$)", re.IGNORECASE)
_NEEDED_AT_START = ("LD_LIBRARY_PATH", "PATH", "PYTHON")
"""Variables (by prefix) that take effect before a rank can read a file."""
_SHELL_SAFE = re.compile(r"[\w@+=:,./ -]*")
"""Values that are the same behind pdsh (which replaces %n, %h, %u) and a shell's double quotes."""


def holds_secret(name: str, value: str) -> bool:
    """Whether a variable is a secret by its name, or its value a URL with one."""
    return bool(_SECRET.search(name)) or redact(value) != value


def is_private(name: str, value: str) -> bool:
    """Whether a variable must go through a file.

    Raises:
        ValueError: neither a file nor a shell can carry it: a rank needs it at its start, and a shell would change it.
    """
    if name == DATA or holds_secret(name, value):
        return True
    if _SHELL_SAFE.fullmatch(value):
        return False
    if name.startswith(_NEEDED_AT_START):
        raise ValueError(f"{name}={value!r} has a character that a remote shell would change; choose another value")
    return True


def shell_word(word: str) -> str:
    """A word of a command line, quoted for DeepSpeed's pdsh launcher, so that the remote shell reads the same word.

    The launcher puts words with a space in double quotes and puts a backslash before those inside, nothing else.

    Raises:
        ValueError: a line break, or a percent sign, which pdsh replaces.
    """
    if "\n" in word or "\r" in word or "%" in word:
        raise ValueError(f"{word!r} has a line break or a %, which cannot reach other hosts through pdsh; rename it")
    return re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)


@contextmanager
def private_files(run: Path, variables: Mapping[str, str], ranks: int) -> Iterator[dict[str, str]]:
    """Files with these variables, one for each rank, until the block ends; yields the variables that name them."""
    if not variables:
        yield {}
        return
    run.mkdir(parents=True, exist_ok=True)
    for leftover in run.glob(f"{_FOLDER}*"):  # of a start that was killed
        shutil.rmtree(leftover)
    folder = run / f"{_FOLDER}{uuid.uuid4().hex}"
    folder.mkdir(mode=0o700)
    try:
        for rank in range(ranks):
            descriptor = os.open(folder / str(rank), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(dict(variables), file)
        yield {TOKEN: folder.name.removeprefix(_FOLDER)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_private_file(run: Path, environment: MutableMapping[str, str]) -> None:
    """In a rank: read its file, if there is to be one, and remove it.

    Raises:
        ValueError: the file is not here.
    """
    token = environment.pop(TOKEN, None)
    if token is None:
        return
    path = run / f"{_FOLDER}{token}" / environment["RANK"]
    try:
        environment.update(json.loads(path.read_bytes()))
        path.unlink()
    except OSError as error:
        raise ValueError(
            f"the run directory {run} is not the first host's (no {path.name}: {error.strerror}); give a --run on "
            "storage that all hosts share"
        ) from error
