"""The command line of `dmd extract`."""

import argparse
from pathlib import Path
from typing import get_args

from data_shards.clip_sets.extract import SECONDS
from data_shards.command_line import Parser
from data_shards.extraction.settings import (
    Alignment,
    AudioFeatures,
    ExtractionSettings,
    Missing,
    TextFeatures,
    VisionFeatures,
    WordTimes,
)
from data_shards.format.schema import MODALITIES
from data_shards.places import place_option

MAX_FAILURES = 2
_DEFAULT = ExtractionSettings()


def extract_parser() -> Parser:
    """Arguments of `dmd extract`."""
    parser = Parser(
        prog="dmd extract",
        description="Make features of a folder of videos or sound files, for `dmd shard`. One bad clip does not stop "
        "the others.",
        epilog="The same command continues: clips that have features are not extracted again, those that failed are "
        "tried again. Exit code 0: at least one clip has features; OUT/_failed.csv lists the others.",
    )
    parser.add_argument(
        "clips", type=_directory, metavar="CLIPS", help="a folder; a clip's id is its path in it: video/0001"
    )
    parser.add_argument("out", type=_directory, metavar="OUT", help="a directory of its own for the features")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE.csv",
        help="a row per clip: id (or video_id, clip_id), split, label or class, text, and optionally file, start, stop "
        "(default: all clips, without splits and labels, to predict)",
    )
    parser.add_argument(
        "--emotions", metavar="NAME,...", help="columns of FILE.csv that hold 0 or 1 for an emotion each"
    )
    parser.add_argument(
        "--transcripts",
        type=Path,
        metavar="PLACE",
        help="a folder with a .json, .srt, .csv or .txt per clip, or a .csv of all (default: beside the clips, or the "
        "column text)",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="clips at once (default: one per core)")
    parser.add_argument(
        "--max-failures",
        type=int,
        default=MAX_FAILURES,
        metavar="N",
        help=f"further attempts at a clip whose process is lost (default: {MAX_FAILURES})",
    )
    parser.add_argument(
        "--clip-seconds", type=int, default=SECONDS, metavar="S", help=f"for one clip at most (default: {SECONDS})"
    )
    parser.add_argument("--restart", action="store_true", help="extract all clips again")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a clip or a row failed")
    _add_features(parser.add_argument_group("features"))
    return parser


def _directory(text: str) -> Path:
    """A directory of this machine, or one that it shares."""
    place = place_option(text)
    if place.is_url:
        raise argparse.ArgumentTypeError(
            f"{place} is a URL; give a directory, and `dmd shard` writes its shards to a URL"
        )
    return place.path


def _add_features(group: argparse._ArgumentGroup) -> None:
    for name, choices, about in (
        ("audio", AudioFeatures, "openSMILE's licence is for research; librosa's is free"),
        ("vision", VisionFeatures, "of the face"),
        ("text", TextFeatures, "raw: `dmd shard --tokenizer` makes tokens"),
        ("alignment", Alignment, "words: one step per word, in all modalities"),
        ("word-times", WordTimes, "spread: words without times take even shares"),
        ("missing", Missing, "a clip without sound, video, face or words: it fails, or gets zeros"),
    ):
        default = getattr(_DEFAULT, name.replace("-", "_"))
        group.add_argument(
            f"--{name}", choices=get_args(choices), default=default, help=f"{about} (default: {default})"
        )
    for name, kind, about in (
        ("audio-rate", float, "audio steps per second"),
        ("sample-rate", int, "samples per second of sound"),
        ("frames-per-second", float, "video frames that are looked at"),
        ("frame-size", int, "pixels of their longer side at most"),
    ):
        default = getattr(_DEFAULT, name.replace("-", "_"))
        group.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{about} (default: {default:g})")
    group.add_argument("--text-encoder", default="", metavar="NAME_OR_PATH", help="of tokens or states")
    group.add_argument(
        "--lengths",
        default="",
        metavar="MODALITY=STEPS,...",
        help="pad and cut all clips to this many steps, such as text=50,audio=400,vision=300 (default: as they are)",
    )
    group.add_argument("--language", default="", metavar="CODE", help="such as en or zh; warns of other scripts")
    group.add_argument("--face-model", type=Path, metavar="FILE.task", help="MediaPipe's face_landmarker.task")


def settings_of(options: argparse.Namespace) -> ExtractionSettings:
    """The settings that the options say. Raises ValueError for impossible ones, and for one that changes no feature."""
    settings = ExtractionSettings(
        audio=options.audio,
        sample_rate=options.sample_rate,
        audio_rate=options.audio_rate,
        vision=options.vision,
        frames_per_second=options.frames_per_second,
        frame_size=options.frame_size,
        text=options.text,
        text_encoder=options.text_encoder,
        alignment=options.alignment,
        word_times=options.word_times,
        lengths=_lengths(options.lengths),
        missing=options.missing,
        language=options.language,
    )
    for name in sorted(settings.unused()):
        if getattr(options, name) not in (getattr(_DEFAULT, name), None):
            raise ValueError(
                f"--{name.replace('_', '-')} makes no difference with --audio {settings.audio} --vision "
                f"{settings.vision} --alignment {settings.alignment}; leave it out"
            )
    made = {"text": settings.text, "audio": settings.audio, "vision": settings.vision}
    for modality in settings.lengths:
        if made[modality] in ("none", "raw"):
            raise ValueError(
                f"--lengths {modality}={settings.lengths[modality]} makes no difference with --{modality} "
                f"{made[modality]}; leave it out"
            )
    return settings


def _lengths(given: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in filter(None, (item.strip() for item in given.split(","))):
        name, _, steps = item.partition("=")
        if name not in MODALITIES or not steps.isascii() or not steps.isdecimal() or not int(steps):
            raise ValueError(f"--lengths {item!r} is not MODALITY=STEPS, such as audio=400")
        if name in found:
            raise ValueError(f"--lengths names {name} twice; leave one")
        found[name] = int(steps)
    return found
