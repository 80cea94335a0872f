"""What is lost or doubtful in a clip, collected while its features are made."""

from data_shards.extraction.clip import ClipError, ClipWarning, WarningKind
from data_shards.extraction.settings import Missing


class Findings:
    """The warnings of one clip."""

    def __init__(self, missing: Missing) -> None:
        self._missing = missing
        self._texts: dict[WarningKind, list[str]] = {}

    def warn(self, kind: WarningKind, text: str) -> None:
        """Something is lost or doubtful."""
        self._texts.setdefault(kind, []).append(text)

    def lacks(self, kind: WarningKind, text: str) -> None:
        """Something is not there that the settings ask for: `ClipError`, unless they take zeros for it."""
        if self._missing == "refuse":
            raise ClipError(f"{text}; `--missing zeros` takes such clips")
        self.warn(kind, text)

    def warnings(self) -> tuple[ClipWarning, ...]:
        """One warning of each kind."""
        return tuple(ClipWarning(kind, "; ".join(texts)) for kind, texts in self._texts.items())
