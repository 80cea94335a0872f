"""Models on the Hugging Face hub: what `dmd export` writes, in a repository.

    push_to_hub("runs/first", "me/dmd-mosi")    # one commit: model.safetensors, model.json, README.md, program.pt2
    from_pretrained("me/dmd-mosi")              # fetches the first two; nothing of a repository is executed

A repository of an ensemble has ensemble.json, a README.md and these files of each member in a directory below.

`huggingface_hub.ModelHubMixin` would not serve: it is for a torch module whose arguments are its config, which it
writes as config.json beside a README of its own, and it pushes a folder in any number of commits. Here the files are
those of an export, the README is made from the run, and a repository never holds the weights of one model beside the
config of another. So this goes to what the mixin stands on, `HfApi` and `snapshot_download`.
"""

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from data_shards.places import PlaceLike, redact
from dmd.checkpoint.select import Step
from dmd.errors import first_line
from dmd.inference.any_export import Exportable, export_any
from dmd.inference.ensemble_readme import ensemble_readme
from dmd.inference.export import CARD, FILES, PUSHED_README, WEIGHTS, DamagedExport, card_text, is_export
from dmd.inference.model_files import ENSEMBLE, MEMBER, Model, ModelFiles, is_ensemble, load, read_document, read_files
from dmd.inference.outputs import checkpoint_text
from dmd.inference.readme import PLACE, README, readme
from dmd.inference.training_facts import TRAINING, facts_from

_log = logging.getLogger(__name__)
LIBRARY = "dmd-cluster"
_MAIN = "main"
_TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
"""What the HTTP client of huggingface_hub raises, such as where nobody answers; the client depends on the version."""
_FILES = "|".join(re.escape(name) for name in FILES if name != README)
_OURS = re.compile(rf"{re.escape(ENSEMBLE)}|({MEMBER.pattern}/)?({_FILES})|{MEMBER.pattern}/{re.escape(README)}")
"""Files of a repository that a push replaces or removes; its README.md may be somebody else's."""
_UNAUTHORIZED, _FORBIDDEN = 401, 403
_LOG_IN = "log in with `hf auth login`, set HF_TOKEN, or give token="


def from_pretrained(
    repo_id: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    device: str | torch.device | None = None,
    text_encoder: str | None = None,
) -> Model:
    """A trained model or an ensemble from a repository of the Hugging Face hub, or from a directory.

    Fetched are model.json and model.safetensors, or ensemble.json and these two of each member that it names, into the
    hub's cache (HF_HOME); nothing of the repository is executed. Without a network what is in the cache is taken.
    HF_ENDPOINT names another hub.

    Args:
        repo_id: OWNER/NAME; or what `dmd.load` reads, an export or a run.
        revision: branch, tag or commit; None: main.
        token: of a private repository; None: that of `hf auth login`, or HF_TOKEN.
        device: where it runs; None: the GPU where there is one.
        text_encoder: see `dmd.system.trained_model.TrainedModel`.

    Raises:
        ValueError: no such repository or revision, no token for it, a hub that cannot be reached, a repository without
            a model, or a damaged download.
    """
    if Path(repo_id).is_dir():
        if revision is not None:
            raise ValueError(f"revision is {revision!r}, but {repo_id} is a directory; leave it out")
        return load(repo_id, device, text_encoder=text_encoder)
    name = _checked_repo(repo_id)
    folder = _snapshot(name, revision, token, [CARD, ENSEMBLE])
    commit = folder.name
    try:
        if is_ensemble(folder):
            members = read_document(folder).members
            _snapshot(name, commit, token, [f"{member}/{file}" for member in members for file in (CARD, WEIGHTS)])
        else:
            _check_there(name, folder / CARD)
            _snapshot(name, commit, token, [WEIGHTS])
            _check_there(name, folder / WEIGHTS)
        return load(folder, device, text_encoder=text_encoder)
    except DamagedExport as error:
        raise DamagedExport(f"{name}: {error}; to download it again, remove {folder.parent.parent}") from error


def _check_there(name: str, file: Path) -> None:
    if not file.is_file():
        raise ValueError(
            f"{name} has no {file.name}, so it is no model that `dmd export` wrote; give another repository"
        )


def _snapshot(name: str, revision: str | None, token: str | None, files: list[str]) -> Path:
    """Fetch these files of a repository, those that it has; the directory of the commit in the cache."""
    with _hub_errors(name, revision):
        return Path(
            snapshot_download(
                name,
                revision=revision,
                token=_checked_token(token),
                allow_patterns=files,
                library_name=LIBRARY,
                library_version=version(LIBRARY),
            )
        )


def push_to_hub(
    model: Exportable,
    repo_id: str,
    *,
    step: Step | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    program: bool = True,
    text_encoder: str | None = None,
    license: str | None = None,
    replace_readme: bool = False,
    calibration: PlaceLike | None = None,
) -> str:
    """Upload a model to the Hugging Face hub, in one commit; returns the commit's address.

    A README that somebody has changed on the hub since the last push stays as it is there, and a warning says so.

    Args:
        model: a run, a model in memory, several runs for an ensemble, or an export. The files of an export are uploaded
            as they are, with its README as you have edited it; only the name that it loads becomes `repo_id`.
        repo_id: OWNER/NAME; made where it is not there.
        step: which checkpoint of a run; None: the best.
        private: whether the repository is private, also one that is there; None: a new one as the owner's account has
            it.
        token: one that may write; None: that of `hf auth login`, or HF_TOKEN.
        revision: a branch, made where it is not there; None: main.
        commit_message: None: one that names the step.
        program: whether a run or a model gets a `torch.export` program.
        text_encoder: see `dmd.system.trained_model.TrainedModel`.
        license: as the hub names it, such as `mit`; None: none. Not of an export, whose README says it.
        replace_readme: whether a README that was changed on the hub is replaced, too.
        calibration: see `dmd.save`; not of an export.

    Raises:
        ValueError: what `dmd.save` rejects; no token, one that may not write there, a repository that is public where
            `private` is asked for, or the other way round, another commit meanwhile, or a hub that cannot be reached.
    """
    check_push(repo_id, token)
    if isinstance(model, str | Path) and (is_export(Path(model)) or is_ensemble(Path(model))):
        if step is not None or license is not None or calibration is not None:
            raise ValueError(
                f"{model} is an export, which has its checkpoint, its README and, of an ensemble, its calibration; "
                "leave step, license and calibration out"
            )
        return _upload(Path(model), repo_id, private, token, revision, commit_message, replace_readme=replace_readme)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "export"
        name = repo_id.rpartition("/")[2]
        export_any(
            model,
            out,
            step=step,
            program=program,
            text_encoder=text_encoder,
            license=license,
            name=name,
            calibration=calibration,
        )
        return _upload(out, repo_id, private, token, revision, commit_message, replace_readme=replace_readme)


def check_push(repo_id: str, token: str | None = None) -> None:
    """Raise ValueError for a name that no repository can have, or where there is no token to write with."""
    _checked_repo(repo_id)
    if _checked_token(token) is None and get_token() is None:
        raise ValueError(f"there is no token to push to {repo_id} with; {_LOG_IN}")


def _upload(
    folder: Path,
    repo_id: str,
    private: bool | None,
    token: str | None,
    revision: str | None,
    message: str | None,
    *,
    replace_readme: bool,
) -> str:
    members = read_files([folder])  # whole, or nothing is uploaded
    document = ENSEMBLE if members.is_ensemble else CARD
    text = _readme_of(folder, members, repo_id)
    paths = _paths(folder)
    api = HfApi(token=token, library_name=LIBRARY, library_version=version(LIBRARY))
    with _hub_errors(repo_id, revision, writes=True):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private is not None:
            _check_visibility(api, repo_id, private)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        head = api.repo_info(repo_id, revision=revision or _MAIN).sha
        there = set(api.list_repo_files(repo_id, revision=head))
        pushed = next((_pushed_readme(api, repo_id, name, head) for name in (ENSEMBLE, CARD) if name in there), None)
        keeps = README in there and not replace_readme and pushed != _readme_digest(api, repo_id, head)
        content = json.loads((folder / document).read_bytes())
        content["source"].pop(PUSHED_README, None)
        digest = pushed if keeps else hashlib.sha256(text.encode()).hexdigest()
        content["source"] |= {} if digest is None else {PUSHED_README: digest}
        files: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(document, card_text(content).encode()),
            *([] if keeps else [CommitOperationAdd(README, text.encode())]),
            *(CommitOperationAdd(name, str(folder / name)) for name in paths if name not in (document, README)),
            *(CommitOperationDelete(name) for name in sorted(there - paths) if _OURS.fullmatch(name)),
        ]
        message = message or checkpoint_text(members.sources).capitalize()
        done = api.create_commit(repo_id, files, commit_message=message, revision=revision, parent_commit=head)
    if keeps:
        _log.warning(
            "warning: %s of %s was changed on the hub since the last push, so it stays; --replace-readme, or "
            "replace_readme=True, replaces it",
            README,
            repo_id,
        )
    return str(done.commit_url)


def _check_visibility(api: HfApi, repo_id: str, private: bool) -> None:
    """Raise ValueError where a repository that was there before is not as private as it is asked to be."""
    if bool(api.repo_info(repo_id, revision=_MAIN).private) != private:
        there, asked = ("public", "private") if private else ("private", "public")
        raise ValueError(
            f"it is there and {there}, but a {asked} repository was asked for, so no model was uploaded; change it in "
            f"its settings on {constants.ENDPOINT}, or leave out {'--private (private=)' if private else 'private='}"
        )


def _paths(folder: Path) -> set[str]:
    """The files of an export, or of an ensemble and its members, as a repository names them."""
    return {
        name
        for path in folder.rglob("*")
        if path.is_file() and (_OURS.fullmatch(name := path.relative_to(folder).as_posix()) or name == README)
    }


def _pushed_readme(api: HfApi, repo_id: str, name: str, commit: str | None) -> str | None:
    """sha256 of the README that the last push wrote; None where the file of this name there does not say it."""
    try:
        content = json.loads(_fetched(api, repo_id, name, commit))
        return str(content["source"][PUSHED_README])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _readme_digest(api: HfApi, repo_id: str, commit: str | None) -> str:
    return hashlib.sha256(_fetched(api, repo_id, README, commit)).hexdigest()


def _fetched(api: HfApi, repo_id: str, name: str, commit: str | None) -> bytes:
    return Path(api.hf_hub_download(repo_id, name, revision=commit)).read_bytes()


def _readme_of(folder: Path, members: ModelFiles, repo_id: str) -> str:
    """The README of an export as it is to be read on the hub; an older export has none and gets one."""
    path = folder / README
    if path.is_file():
        return path.read_text(encoding="utf-8").replace(f'from_pretrained("{PLACE}")', f'from_pretrained("{repo_id}")')
    name = repo_id.rpartition("/")[2]
    if members.is_ensemble:
        cards = [card for card, _ in members.members]
        return ensemble_readme(cards, read_document(folder), name=name, license=None, place=repo_id)
    card = members.card
    facts = facts_from(card.source[TRAINING], str(folder)) if TRAINING in card.source else None
    return readme(card, facts, name=name, license=None, place=repo_id)


def _checked_repo(repo_id: str | Path) -> str:
    name = str(repo_id)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"there is no directory {name}, and it is no name on the hub; give OWNER/NAME") from error
    return name


def _checked_token(token: str | None) -> str | None:
    """A token that fits into a header of HTTP; the error of the library about another one shows it."""
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise ValueError("the token is empty, or has a blank, a line break or other characters that no token has")
    return token


@contextmanager
def _hub_errors(repo_id: str, revision: str | None, *, writes: bool = False) -> Iterator[None]:
    """Turn what the hub's library raises in the block into a ValueError of one line; no message has the token."""
    try:
        yield
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        _TRANSPORT_ERROR,
        OSError,
        RuntimeError,
    ) as error:
        raise ValueError(redact(_told(error, repo_id, revision, writes=writes))) from error
    except ValueError as error:  # such as front matter that the hub does not take
        raise ValueError(" ".join(f"{repo_id}: {error}".split())) from error


def _told(error: Exception, repo_id: str, revision: str | None, *, writes: bool) -> str:
    hub, failed = constants.ENDPOINT, f"{repo_id} cannot be {'pushed to' if writes else 'fetched'}"
    if isinstance(error, GatedRepoError):
        return f"{repo_id} on {hub} is gated: ask for access on its page, and {_LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no model {repo_id} on {hub}, or the token does not see it; mend the name, or {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} on {hub} has no revision {revision!r}; give a branch, a tag or a commit that is there"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (_UNAUTHORIZED, _FORBIDDEN):
            return f"{hub} does not let this token {'write to' if writes else 'read'} {repo_id}; {_LOG_IN}"
        return f"{failed}: {hub} answers {status} ({_reason(error)}); repeat it later"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | _TRANSPORT_ERROR):
        offline = constants.is_offline_mode()
        why = (
            "while HF_HUB_OFFLINE is set; unset it" if offline else f"({_reason(error.__cause__ or error)}); go online"
        )
        other = "" if writes else ", or give the directory of an export"
        return f"{failed}: {hub} cannot be reached {why}{other}"
    return f"{failed} ({_reason(error.__cause__ or error)}); the same call tries it again"


def _reason(error: BaseException) -> str:
    """The first line of what an error says; others have the addresses of requests."""
    return first_line(error, 200)
