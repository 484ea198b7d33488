"""Recordings: PCM to samples, another rate, cepstral coefficients. NumPy and the standard library only."""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from edgekit.bundle.step_rules import RATES
from edgekit.bundle.steps import Before, Length, Mfcc, Peak, Resample, Wav
from edgekit.errors import InputError

Samples = NDArray[np.float32]

MAX_CHANNELS = 32
_ZEROS = 16
"""Zero crossings of the resampling filter on each side of its middle."""
_TABLE = 1 << 18
"""Weights that are held at once while resampling."""


@dataclass(frozen=True, slots=True)
class Sound:
    samples: Samples
    """(samples,), from -1 to 1."""
    rate: int
    """Samples per second."""


class Chain:
    """The steps of a recording, one after the other, their tables made once."""

    def __init__(self, first: Wav, rest: Sequence[Before], wanted: Sequence[int]) -> None:
        """`wanted`: the shape of one sample of the model's input; -1 is any size."""
        self._first = first
        self._rest = rest
        self._cepstrum = next((Cepstrum(step) for step in rest if isinstance(step, Mfcc)), None)
        self._most = math.prod(wanted) if min(wanted, default=0) > 0 else 0
        """Values that the model reads; 0: any number."""

    def __call__(self, body: bytes) -> NDArray[np.float32]:
        """(samples,), or (frames, coefficients). Raises InputError."""
        sound = read(body, self._first.max_seconds)
        for step in self._rest:
            match step:
                case Resample():
                    sound = resample(sound, step.rate)
                case Peak():
                    sound = peak(sound)
                case Length():
                    sound = Sound(length(sound.samples, step.samples), sound.rate)
                case Mfcc() if self._cepstrum is not None:
                    return self._cepstrum(sound, self._most)
        return sound.samples


def read(body: bytes, max_seconds: float) -> Sound:
    """One channel of a RIFF file of 8, 16, 24 or 32 bit PCM: the mean of its channels.

    What the header says of sizes is not believed: only what is there is read. Raises InputError.
    """
    try:
        with wave.open(io.BytesIO(body)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            if not (1 <= channels <= MAX_CHANNELS and 1 <= width <= 4 and rate in RATES):
                raise InputError(
                    f"a recording of {channels} channels, {8 * width} bits and {rate} samples per second",
                    f"send up to {MAX_CHANNELS} channels of 8 to 32 bits, {RATES[0]} to {RATES[-1]} Hz",
                )
            most = int(max_seconds * rate)
            raw = file.readframes(most + 1)
    except InputError:
        raise
    except Exception as exc:  # wave raises Error, EOFError, struct.error, and what damaged chunks provoke
        said = " ".join(str(exc).split()) or type(exc).__name__
        raise InputError(
            f"not a recording that can be read: {said[:120]}", "send a .wav file of PCM"
        ) from None
    frame = channels * width
    count = len(raw) // frame
    if count > most:
        raise InputError(f"the recording is longer than the {max_seconds:g} s allowed")
    if count == 0:
        raise InputError("the recording holds no samples")
    return Sound(_mono(raw[: count * frame], channels, width), rate)


def _mono(raw: bytes, channels: int, width: int) -> Samples:
    if width == 1:  # the only unsigned one
        values = np.frombuffer(raw, np.uint8).astype(np.float32) - np.float32(128)
    elif width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        values = (wide.view("<i4")[:, 0] >> 8).astype(np.float32)
    else:
        values = np.frombuffer(raw, f"<i{width}").astype(np.float32)
    values /= np.float32(1 << (8 * width - 1))
    return values if channels == 1 else values.reshape(-1, channels).mean(axis=1, dtype=np.float32)


def peak(sound: Sound) -> Sound:
    """Divided by the largest sample, as MLPerf Tiny's keyword spotter does (its get_dataset.py divides by
    `tf.reduce_max`, not by the largest magnitude). A recording without a sample above 0 stays as it is."""
    largest = sound.samples.max()
    return Sound(sound.samples / largest, sound.rate) if largest > 0 else sound


def length(samples: Samples, wanted: int) -> Samples:
    """The first `wanted` samples, with zeros where there are fewer."""
    if len(samples) >= wanted:
        return samples[:wanted]
    whole = np.zeros(wanted, np.float32)
    whole[: len(samples)] = samples
    return whole


def resample(sound: Sound, rate: int) -> Sound:
    """Band-limited interpolation: every new sample is a sum over its neighbours, weighted by a sinc with a
    Hann window that ends at its 16th zero; where the rate falls, the sinc is as much wider, so that nothing
    above half the new rate is left. Source: J. O. Smith, "Digital Audio Resampling", equations 1 to 4.
    """
    if rate == sound.rate:
        return sound
    divisor = math.gcd(rate, sound.rate)
    up, down = rate // divisor, sound.rate // divisor
    reach = _reach(up, down)
    table = _table(up, down) if up * 2 * reach <= _TABLE else None
    count = -(-len(sound.samples) * up // down)
    padded = np.concatenate((np.zeros(reach, np.float32), sound.samples, np.zeros(2 * reach, np.float32)))
    windows = sliding_window_view(padded, 2 * reach)
    made = np.empty(count, np.float32)
    chunk = max(16, _TABLE // (2 * reach))
    for begin in range(0, count, chunk):
        places = np.arange(begin, min(begin + chunk, count), dtype=np.int64) * down  # in 1 / up old samples
        weights = _weights(places % up, up, down) if table is None else table[places % up]
        # The neighbours of a place p begin at floor(p) - reach + 1, which `reach` zeros put at floor(p) + 1.
        made[begin : begin + chunk] = np.einsum("ij,ij->i", windows[places // up + 1], weights)
    return Sound(made, rate)


def _reach(up: int, down: int) -> int:
    """Old samples on each side of a new one that count."""
    return math.ceil(_ZEROS * max(1.0, down / up))


@lru_cache(maxsize=8)
def _table(up: int, down: int) -> Samples:
    return _weights(np.arange(up), up, down)


def _weights(phases: NDArray[np.int64], up: int, down: int) -> Samples:
    """(phases, 2 reach): weights of the neighbours of a place phase / up behind an old sample; sum 1."""
    cutoff, reach = min(1.0, up / down), _reach(up, down)
    away = (np.arange(1 - reach, reach + 1) - phases[:, None] / up) * cutoff
    window = np.where(np.abs(away) < _ZEROS, 0.5 + 0.5 * np.cos(np.pi * away / _ZEROS), 0.0)
    weights = np.sinc(away) * window
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


class Cepstrum:
    """Mel-frequency cepstral coefficients as TensorFlow's `tf.signal` computes them.

    For each frame x of `window` samples, of which the next begins `step` later:
        S[b] = |sum_n x[n] h[n] exp(-2 pi i b n / fft)|
        L[m] = ln(sum_b S[b] W[b, m] + floor)
        c[k] = sqrt(2 / M) sum_m L[m] cos(pi k (2 m + 1) / (2 M))
    h is the periodic Hann window, 0.5 - 0.5 cos(2 pi n / window); M the number of mel bins; W triangles: each
    m rises and falls linearly *in mel* between the points m, m + 1 and m + 2 of M + 2 points equally spaced
    from mel(low_hz) to mel(high_hz), with mel(f) = 1127 ln(1 + f / 700). The bin of 0 Hz counts nowhere.

    Sources: the documentation of tf.signal.stft, hann_window, linear_to_mel_weight_matrix and
    mfccs_from_log_mel_spectrograms; the parameters of the keyword spotter in MLPerf Tiny,
    benchmark/training/keyword_spotting/get_dataset.py. Computed in float64.
    """

    def __init__(self, step: Mfcc) -> None:
        self._step = step
        self._window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(step.window) / step.window)
        self._mel = mel_weights(step)
        bins = np.arange(step.mel_bins)
        angle = np.pi * np.outer(2 * bins + 1, np.arange(step.coefficients)) / (2 * step.mel_bins)
        self._cosines = math.sqrt(2 / step.mel_bins) * np.cos(angle)

    def __call__(self, sound: Sound, most: int = 0) -> NDArray[np.float32]:
        """(frames, coefficients). Raises InputError for another rate, or more values than `most` (0: any)."""
        step = self._step
        if sound.rate != step.rate:
            raise InputError(
                f"the recording has {sound.rate} samples per second, the model wants {step.rate}",
                f"send {step.rate} Hz, or build with a resample step",
            )
        if len(sound.samples) < step.window:
            raise InputError(f"the recording is shorter than one frame of {step.window} samples")
        frames = sliding_window_view(sound.samples, step.window)[:: step.step]
        if most and len(frames) * step.coefficients > most:
            raise InputError(
                f"the recording gives {len(frames)} frames, the model reads {most // step.coefficients}",
                "send a shorter one, or build with a length step",
            )
        made = np.empty((len(frames), step.coefficients), np.float32)
        for begin in range(0, len(frames), 256):  # so that a long recording needs little memory
            part = frames[begin : begin + 256] * self._window
            energy = np.abs(np.fft.rfft(part, step.fft)) @ self._mel
            made[begin : begin + 256] = np.log(energy + step.floor) @ self._cosines
        return made


def mel_weights(step: Mfcc) -> NDArray[np.float64]:
    """(fft / 2 + 1, mel_bins): how much each frequency counts in each mel bin."""
    points = np.linspace(_mel(step.low_hz), _mel(step.high_hz), step.mel_bins + 2)
    bins = np.fft.rfftfreq(step.fft, 1 / step.rate)
    place = _mel(bins)[:, None]
    low, middle, high = points[:-2], points[1:-1], points[2:]
    weights = np.maximum(0.0, np.minimum((place - low) / (middle - low), (high - place) / (high - middle)))
    weights[0] = 0.0
    return weights


def _mel(hertz: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0))
