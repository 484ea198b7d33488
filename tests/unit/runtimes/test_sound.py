"""Recordings: what is read of a wav file, other rates, and coefficients against independent computations."""

from __future__ import annotations

import io
import struct
import wave
from typing import Any

import numpy as np
import pytest
import scipy.fft  # type: ignore[import-untyped]
import scipy.signal  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.steps import Length, Mfcc, Peak, Resample, Wav
from edgekit.errors import InputError
from edgekit.runtimes import Array
from edgekit.runtimes._pipeline import sound
from edgekit.runtimes._pipeline.sound import Cepstrum, Chain, Sound
from tests.unit.runtimes import kws

RATE = 16000


def wav(samples: Array, rate: int = RATE, width: int = 2, channels: int = 1) -> bytes:
    """`samples` from -1 to 1, interleaved where there are several channels."""
    full = (1 << (8 * width - 1)) - 1
    whole = np.round(np.asarray(samples, np.float64) * full).astype(np.int64)
    raw = b"".join(
        int(v + (128 if width == 1 else 0)).to_bytes(width, "little", signed=width > 1) for v in whole
    )
    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setnchannels(channels)
        made.setsampwidth(width)
        made.setframerate(rate)
        made.writeframes(raw)
    return file.getvalue()


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE) -> Array:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


# --- reading


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_is_read(width: int) -> None:
    given_ = tone(440.0, 0.1) * 0.5
    read = sound.read(wav(given_, width=width), 1.0)
    assert read.rate == RATE and read.samples.dtype == np.float32
    np.testing.assert_allclose(read.samples, given_, atol=2.0 ** -(8 * width - 2))


def test_extremes_and_channels() -> None:
    body = wav(np.array([1.0, -1.0, 0.5, 0.0]), channels=2)
    np.testing.assert_allclose(sound.read(body, 1.0).samples, [0.0, 0.25], atol=1e-4)
    lowest = wav(np.zeros(1))[:-2] + b"\x00\x80"
    assert sound.read(lowest, 1.0).samples.tolist() == [-1.0]


def _header(**changes: int) -> bytes:
    """44 bytes of header with some fields wrong, and 1000 bytes of samples."""
    fields = {
        "riff": 1036, "fmt": 16, "tag": 1, "channels": 1, "rate": RATE, "bytes": 2 * RATE, "block": 2,
        "bits": 16, "data": 1000,
    } | changes  # fmt: skip
    layout = struct.pack(
        "<HHIIHH", *(fields[k] for k in ("tag", "channels", "rate", "bytes", "block", "bits"))
    )
    begin = b"RIFF" + struct.pack("<I", fields["riff"]) + b"WAVEfmt " + struct.pack("<I", fields["fmt"])
    return begin + layout + b"data" + struct.pack("<I", fields["data"]) + bytes(range(250)) * 4


def test_sizes_in_the_header_are_not_believed() -> None:
    for changes in ({"data": 0xFFFFFFFF, "riff": 0xFFFFFFFF}, {"data": 999_999}, {"block": 9, "bytes": 7}):
        assert len(sound.read(_header(**changes), 1.0).samples) == 500


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": 0}, {"channels": 60000}, {"bits": 0}, {"bits": 64}, {"rate": 0}, {"rate": 1},
        {"rate": 0xFFFFFFFF}, {"tag": 3}, {"tag": 85}, {"fmt": 4}, {"fmt": 0xFFFFFFFF}, {"data": 0},
        {"riff": 0},
    ],
    ids=str,
)  # fmt: skip
def test_odd_headers_are_refused_in_one_line(changes: dict[str, int]) -> None:
    with pytest.raises(InputError) as refused:
        sound.read(_header(**changes), 1.0)
    assert "\n" not in refused.value.message and len(refused.value.message) < 200


@pytest.mark.parametrize(
    "body", [b"", b"RIFF", b"\xff\xd8\xff\xe0", b"RIFX" + bytes(40), bytes(4096)], ids=repr
)
def test_what_is_no_recording(body: bytes) -> None:
    with pytest.raises(InputError, match="not a recording"):
        sound.read(body, 1.0)


def test_a_long_recording_is_refused_before_it_is_converted() -> None:
    body = wav(np.zeros(RATE + 1))
    assert len(sound.read(body, 1.1).samples) == RATE + 1
    with pytest.raises(InputError, match="longer than the 1 s allowed"):
        sound.read(body, 1.0)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_give_samples_or_one_line(data: st.DataObject) -> None:
    body = bytearray(wav(tone(440.0, 0.01), width=data.draw(st.integers(1, 4))))
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, min(len(body) - 1, 60)))] = data.draw(st.integers(0, 255))
    try:
        assert np.isfinite(sound.read(bytes(body[: data.draw(st.integers(0, len(body)))]), 1.0).samples).all()
    except InputError as exc:
        assert "\n" not in exc.message


# --- another rate


@pytest.mark.parametrize("old", [8000, 11025, 22050, 24000, 44100, 44101, 48000, 96000])
def test_a_tone_keeps_its_pitch_and_height_at_any_rate(old: int) -> None:
    made = sound.resample(Sound(tone(1000.0, 0.5, old).astype(np.float32), old), RATE)
    wanted = tone(1000.0, 0.5)
    assert made.rate == RATE and abs(len(made.samples) - len(wanted)) <= 1
    inner = slice(400, len(wanted) - 400)
    np.testing.assert_allclose(made.samples[inner], wanted[inner], atol=2e-3)


def test_what_the_new_rate_cannot_carry_is_gone() -> None:
    made = sound.resample(Sound(tone(11000.0, 0.5, 44100).astype(np.float32), 44100), RATE)
    assert np.abs(made.samples[400:-400]).max() < 0.01


def test_a_constant_stays_constant_and_no_change_is_no_work() -> None:
    flat = Sound(np.full(4410, 0.25, np.float32), 44100)
    np.testing.assert_allclose(sound.resample(flat, RATE).samples[100:-100], 0.25, rtol=1e-6)
    assert sound.resample(flat, 44100) is flat


def test_rates_without_a_table_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = Sound(np.random.default_rng(1).standard_normal(3000).astype(np.float32), 44100)
    with_table = sound.resample(given_, RATE).samples
    monkeypatch.setattr(sound, "_TABLE", 4096)
    np.testing.assert_allclose(sound.resample(given_, RATE).samples, with_table, atol=1e-6)


def test_resampling_agrees_with_scipy_within_the_band() -> None:
    """scipy.signal.resample_poly has another filter (Kaiser, 10 zeros): equal where both pass everything."""
    noise = np.random.default_rng(2).standard_normal(48000)
    low = scipy.signal.sosfilt(scipy.signal.butter(12, 4000, fs=48000, output="sos"), noise)
    made = sound.resample(Sound(low.astype(np.float32), 48000), RATE).samples
    theirs = scipy.signal.resample_poly(low, 1, 3)
    np.testing.assert_allclose(made[200:-200], theirs[200:-200], atol=0.02 * np.abs(theirs).max())


# --- coefficients


def by_scipy(samples: Array, step: Mfcc) -> Array:
    """The documented formula in SciPy's words: its window, its FFT, its DCT; triangles bin by bin."""
    window = scipy.signal.get_window("hann", step.window, fftbins=True)
    begins = range(0, len(samples) - step.window + 1, step.step)
    spectra = np.array(
        [np.abs(scipy.fft.rfft(samples[i : i + step.window] * window, step.fft)) for i in begins]
    )

    def mel(hertz: float) -> float:
        return float(1127.0 * np.log(1.0 + hertz / 700.0))

    edges = np.linspace(mel(step.low_hz), mel(step.high_hz), step.mel_bins + 2)
    weights = np.zeros((step.fft // 2 + 1, step.mel_bins))
    for b in range(1, step.fft // 2 + 1):
        at = mel(b * step.rate / step.fft)
        for m in range(step.mel_bins):
            rising = (at - edges[m]) / (edges[m + 1] - edges[m])
            falling = (edges[m + 2] - at) / (edges[m + 2] - edges[m + 1])
            weights[b, m] = max(0.0, min(rising, falling))
    logs = np.log(spectra @ weights + step.floor)
    made: Array = scipy.fft.dct(logs, type=2, axis=-1) / np.sqrt(2 * step.mel_bins)
    return made[:, : step.coefficients]


SHAPES = [
    Mfcc(),
    Mfcc(window=400, step=160, mel_bins=80, coefficients=13, high_hz=7600.0),
    Mfcc(rate=8000, window=256, fft=256, step=128, mel_bins=20, coefficients=20, floor=1e-3),
]


@pytest.mark.parametrize("step", SHAPES, ids=["mlperf-tiny", "13 of 80", "8 kHz"])
def test_coefficients_are_those_of_the_formula(step: Mfcc) -> None:
    rng = np.random.default_rng(3)
    for samples in (tone(440.0, 1.0, step.rate), rng.standard_normal(step.rate) * 0.1, np.zeros(step.rate)):
        made = Cepstrum(step)(Sound(samples.astype(np.float32), step.rate))
        np.testing.assert_allclose(made, by_scipy(samples.astype(np.float32), step), atol=2e-4)


def test_pure_tones_differ_by_less_than_float32_rounds() -> None:
    """TensorFlow computes in float32; what that costs where a band is all but empty."""
    samples = tone(440.0, 1.0).astype(np.float32)
    made = Cepstrum(Mfcc())(Sound(samples, RATE))
    window = np.asarray(scipy.signal.get_window("hann", 480), np.float32)
    frames = np.stack([samples[i : i + 480] * window for i in range(0, RATE - 479, 320)])
    spectra = np.abs(scipy.fft.rfft(frames, 512)).astype(np.float32)
    logs = np.log(spectra @ sound.mel_weights(Mfcc()).astype(np.float32) + np.float32(1e-6))
    theirs = scipy.fft.dct(logs, type=2, axis=-1)[:, :10] / np.sqrt(np.float32(80))
    np.testing.assert_allclose(made, theirs, atol=0.1)


def test_silence_is_what_mlperf_tiny_made_of_it() -> None:
    """The 1,000 evaluation inputs of MLPerf Tiny hold clips shorter than a second, ended by zeros: 679 frames
    of digital silence, quantised (scale 0.5847, offset 83, cut towards zero). Ours is the same frame."""
    frame = Cepstrum(Mfcc())(Sound(np.zeros(RATE, np.float32), RATE))[0]
    scale = kws.SCALE.affine[0]
    quantised = np.clip(frame / scale.scale + scale.offset, -128, 127)
    stored = kws.data()[0][:, :, :, 0].reshape(-1, 10)
    silent = stored[(stored[:, 0] == -128) & (np.abs(stored[:, 1:].astype(int) - 83).max(axis=1) <= 1)]
    assert len(silent) == 679
    assert np.abs(silent - quantised).max() <= 1.01


def test_chains() -> None:
    spotter = Chain(Wav(), (Resample(rate=RATE), Peak(), Length(samples=RATE), Mfcc()), (49, 10, 1))
    noise = np.random.default_rng(4).uniform(-1, 1, 13230)
    short = spotter(wav(noise * 0.1, 44100))
    assert short.shape == (49, 10)
    silence = Cepstrum(Mfcc())(Sound(np.zeros(480, np.float32), RATE))[0]
    np.testing.assert_allclose(short[20:], np.tile(silence, (29, 1)), atol=1e-4)
    loud = spotter(wav(noise * 0.9, 44100))
    np.testing.assert_allclose(loud[:14], short[:14], atol=0.1)  # the same but for rounding to 16 bits
    long = Chain(Wav(), (Length(samples=RATE),), (RATE,))(wav(tone(440.0, 1.5)))
    assert len(long) == RATE


@pytest.mark.parametrize(
    ("rest", "samples", "rate", "words"),
    [
        ((Mfcc(),), RATE, 44100, "has 44100 samples per second, the model wants 16000"),
        ((Mfcc(),), 100, RATE, "shorter than one frame of 480"),
        ((Mfcc(),), 2 * RATE, RATE, "gives 99 frames, the model reads 49"),
    ],
)
def test_recordings_that_do_not_fit(rest: Any, samples: int, rate: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Chain(Wav(), rest, (49, 10, 1))(wav(np.zeros(samples), rate))


def test_nothing_above_zero_stays_as_it_is() -> None:
    quiet = Sound(np.array([0.0, -0.5], np.float32), RATE)
    assert sound.peak(quiet) is quiet
    assert sound.peak(Sound(np.array([0.25, -0.5], np.float32), RATE)).samples.tolist() == [1.0, -2.0]
