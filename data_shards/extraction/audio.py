"""Features of sound, 100 frames per second: openSMILE's eGeMAPS low-level descriptors, or librosa's descriptors."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.extraction.alignment import Track
from data_shards.extraction.clip import ClipError
from data_shards.extraction.libraries import load
from data_shards.extraction.settings import AudioFeatures

FRAMES_PER_SECOND = 100
SHORTEST_SECONDS = 0.06
"""openSMILE's longest window, that of the pitch."""
AUDIO_DIMS: dict[AudioFeatures, int] = {"opensmile-egemaps": 25, "librosa": 34}
_OPENSMILE_CENTRE = 0.01
"""Seconds from a frame's time to the middle of openSMILE's windows of 20 ms."""
_WINDOW_SECONDS = 0.025
_PITCH_WINDOW_SECONDS = 0.064
_LOWEST_PITCH, _HIGHEST_PITCH = 60.0, 400.0
"""Hz, of speech."""
_COEFFICIENTS = 20
_MEL_BANDS = 40
_LOWEST_CONTRAST = 100.0
"""Hz at which the second of seven bands begins whose contrast is taken; each is an octave."""


def audio_track(sound: NDArray[np.float32], rate: int, kind: AudioFeatures) -> Track:
    """Features of sound [samples] at `rate` samples per second.

    Raises:
        ClipError: the sound is too short.
        ValueError: the library is not installed.
    """
    seconds = len(sound) / rate
    if seconds < SHORTEST_SECONDS:
        raise ClipError(f"its sound lasts {seconds:.3f} s, and a window of the features {SHORTEST_SECONDS} s")
    features, centres = (_egemaps if kind == "opensmile-egemaps" else _librosa)(sound, rate)
    assert features.shape[1] == AUDIO_DIMS[kind]
    return Track(features, centres, seconds, np.ones(len(features), dtype=np.bool_))


def _egemaps(sound: NDArray[np.float32], rate: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The 25 low-level descriptors of eGeMAPS v02 (Eyben et al. 2016), smoothed over three frames as in the set."""
    opensmile: Any = load("opensmile")
    smile = opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02,
        feature_level=opensmile.FeatureLevel.LowLevelDescriptors,
    )
    table = smile.process_signal(sound, rate)
    centres = np.arange(len(table)) / FRAMES_PER_SECOND + _OPENSMILE_CENTRE
    return np.ascontiguousarray(table.to_numpy(dtype=np.float32)), centres


def _librosa(sound: NDArray[np.float32], rate: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """librosa's features of windows of 25 ms, in the order of docs/extraction.md; the pitch is YIN's."""
    librosa: Any = load("librosa")
    hop, window = rate // FRAMES_PER_SECOND, round(rate * _WINDOW_SECONDS)
    size = _power_of_two(window)
    magnitudes = np.abs(librosa.stft(sound, n_fft=size, hop_length=hop, win_length=window))
    bands = librosa.feature.melspectrogram(S=magnitudes**2, sr=rate, n_mels=_MEL_BANDS)
    of_spectrum = {"S": magnitudes, "sr": rate}
    pitch = librosa.yin(
        sound,
        fmin=_LOWEST_PITCH,
        fmax=_HIGHEST_PITCH,
        sr=rate,
        frame_length=_power_of_two(round(rate * _PITCH_WINDOW_SECONDS)),
        hop_length=hop,
    )
    rows = [
        librosa.feature.mfcc(S=librosa.power_to_db(bands), n_mfcc=_COEFFICIENTS),
        librosa.feature.rms(S=magnitudes, frame_length=size),
        librosa.feature.zero_crossing_rate(sound, frame_length=window, hop_length=hop),
        librosa.feature.spectral_centroid(**of_spectrum),
        librosa.feature.spectral_bandwidth(**of_spectrum),
        librosa.feature.spectral_rolloff(**of_spectrum),
        librosa.feature.spectral_flatness(S=magnitudes),
        librosa.feature.spectral_contrast(**of_spectrum, fmin=_LOWEST_CONTRAST),
        pitch[None],
    ]
    features = np.concatenate(rows).T.astype(np.float32)
    return np.ascontiguousarray(features), np.arange(len(features)) / FRAMES_PER_SECOND


def _power_of_two(samples: int) -> int:
    """The next power of two that is not smaller."""
    return 1 << (samples - 1).bit_length()
