"""The clips of a folder, and the transcripts that lie beside them or in a folder of their own."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from data_shards.extraction.transcript_files import TRANSCRIPT_SUFFIXES
from data_shards.format.schema import is_utf8
from data_shards.sources.label_table import ID_SEPARATOR
from data_shards.sources.paths import named_files, no_files

MEDIA_SUFFIXES = frozenset(
    {
        *(".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".3gp"),
        *(".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac"),
    }
)
"""What a clip's file may be called, in lower case."""
_SPELLINGS = tuple(spelling for suffix in TRANSCRIPT_SUFFIXES for spelling in (suffix, suffix.upper()))
_NOT_UTF8 = "files whose names are not UTF-8"


@dataclass(frozen=True, kw_only=True)
class ClipFiles:
    """The media files of a folder, by clip id: the path in the folder without its suffix, such as `video/0001`."""

    folder: Path
    media: dict[str, tuple[Path, ...]]
    """More than one where only suffixes differ."""
    unknown: dict[str, int]
    """Suffixes of files that are neither media nor transcripts, and what else is left out -> how many there are."""
    faults: tuple[tuple[str, str], ...] = ()
    """(clip or file, reason) of media files that cannot be clips, and of what is no file and may stand for one."""

    def find(self, name: str) -> str | None:
        """The id of the clip that a label file means by `video/0001`, `video/0001.mp4` or `video$_$0001`."""
        plain = name.replace(ID_SEPARATOR, "/").replace("\\", "/")
        without = plain.rpartition(".")[0] if f".{plain.rpartition('.')[2]}".lower() in MEDIA_SUFFIXES else plain
        return next((key for key in (name, plain, without) if key in self.media), None)

    def similar(self, name: str) -> str | None:
        """The one id that differs from a name in case or leading zeros alone, as a spreadsheet leaves them."""
        wanted = _simplified(name)
        found = [key for key in self.media if _simplified(key) == wanted]
        return found[0] if len(found) == 1 else None


def find_clips(folder: Path) -> ClipFiles:
    """Look for clips in a folder and all below it.

    Raises:
        ValueError: no folder, or none with a media file.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the one that holds the clips")
    media: dict[str, list[Path]] = {}
    unknown: dict[str, int] = {}
    faults: list[tuple[str, str]] = []
    for path, name in named_files([folder]):
        suffix = path.suffix.lower()
        if not is_utf8(name):
            unknown[_NOT_UTF8] = unknown.get(_NOT_UTF8, 0) + 1
            if suffix in MEDIA_SUFFIXES:
                faults.append((_written(name), "its name is not UTF-8, so it cannot be an id; rename the file"))
        elif suffix in MEDIA_SUFFIXES:
            media.setdefault(name.removesuffix(path.suffix), []).append(path)
        elif suffix not in TRANSCRIPT_SUFFIXES:
            kind = f"files {path.suffix or 'without a suffix'}"
            unknown[kind] = unknown.get(kind, 0) + 1
    for name, kind in no_files([folder]):
        plain = name.removesuffix(PurePath(name).suffix) if PurePath(name).suffix.lower() in MEDIA_SUFFIXES else name
        faults.append((_written(plain), f"{_written(name)} is {kind}; give the file itself"))
    if not media:
        unknown |= {reason: 1 for _, reason in faults}
        others = f"; it holds {', '.join(f'{name} ({count})' for name, count in sorted(unknown.items()))}"
        raise ValueError(
            f"{folder} holds no video and no sound file ({', '.join(sorted(MEDIA_SUFFIXES))})"
            f"{others if unknown else ''}; give the folder of the clips"
        )
    return ClipFiles(
        folder=folder,
        media={name: tuple(paths) for name, paths in sorted(media.items())},
        unknown=unknown,
        faults=tuple(faults),
    )


def transcript_file(media: Path, folder: Path, transcripts: Path | None) -> Path | None:
    """The transcript of a media file in `folder`: of the same stem, beside it or at the same place of `transcripts`."""
    stem = str(media.relative_to(folder).with_suffix(""))
    return next((path for path in _candidates(media, stem, transcripts) if path.is_file()), None)


def unused_transcripts(folders: Collection[Path], used: Collection[Path]) -> list[Path]:
    """The files in folders and below that are called as transcripts are, and are none of those that are used."""
    found = {path for folder in folders for path, _ in named_files([folder])} - set(used)
    same = {path.resolve() for path in used}
    named = (path for path in sorted(found) if path.suffix.lower() in TRANSCRIPT_SUFFIXES)
    return [path for path in named if path.resolve() not in same]


def _candidates(media: Path, stem: str, transcripts: Path | None) -> Iterator[Path]:
    for suffix in _SPELLINGS:
        yield media.with_suffix(suffix) if transcripts is None else transcripts / f"{stem}{suffix}"


def _written(name: str) -> str:
    """A name as text, whatever bytes it is made of."""
    return name.encode(errors="backslashreplace").decode()


def _simplified(name: str) -> str:
    parts = name.replace(ID_SEPARATOR, "/").lower().split("/")
    return "/".join(part.lstrip("0") or "0" for part in parts)
