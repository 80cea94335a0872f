"""From ten self-made clips to a report: the commands that a user types, and how long each takes.

    python -m benchmarks.clips_to_report FOLDER

Clips show a face that moves and say a sentence each (espeak-ng). Word vectors are random, as are the labels' numbers:
what is measured is the way, not what is learned on it.
"""

import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from data_shards.cores import usable_cores
from tests.support.clips import speech, write_clip

SENTENCES = ("good film indeed", "bad film really", "I like it", "terrible sound today", "what a day")
CLIPS = 10
COMMANDS = (
    "extract {0}/clips {0}/features --labels {0}/labels.csv --lengths audio=60,vision=45",
    "shard {0}/features {0}/shards --word-vectors {0}/vectors.txt --text-length 12",
    "train --preset demo --data {0}/shards --run {0}/run",
    "report {0}/run",
)


def make_clips(folder: Path) -> float:
    """Clips, labels and word vectors; how many seconds the clips last."""
    random = np.random.default_rng(0)
    (folder / "clips").mkdir(parents=True)
    seconds = 0.0
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "split", "label", "text"))
        for number in range(CLIPS):
            text = SENTENCES[number % len(SENTENCES)]
            sound = speech(text)
            seconds += sound.seconds
            write_clip(folder / "clips" / f"{number:04d}.mp4", sound)
            split = "train" if number < 6 else "valid" if number < 8 else "test"
            rows.writerow((f"{number:04d}", split, number % 7 - 3, text))
    words = sorted({word for text in SENTENCES for word in text.lower().split()})
    vectors = [" ".join((word, *(f"{value:.4f}" for value in random.normal(size=50)))) for word in words]
    (folder / "vectors.txt").write_text("\n".join(vectors) + "\n", encoding="utf-8")
    return seconds


def main(folder: Path) -> None:
    """Make clips, run the commands, print how long each took."""
    seconds = make_clips(folder)
    print(f"{CLIPS} clips, {seconds:.1f} s of sound and video; {usable_cores()} cores")
    total = 0.0
    for line in COMMANDS:
        words = line.format(folder).split()
        begun = time.monotonic()
        subprocess.run([sys.executable, "-m", "dmd.cli", *words], check=True)
        total += time.monotonic() - begun
        print(f"{time.monotonic() - begun:.1f} s: dmd {' '.join(words)}", flush=True)
    print(f"{total:.1f} s in all")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
