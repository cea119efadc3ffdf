"""Sounds made on the spot: tones whose pitch is known, and voices by formants. A seed gives the same sounds anywhere."""

from __future__ import annotations

import multiprocessing

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
RATE = 16_000  # samples a second, of both networks
BLOCK = 512  # speakers that are made at a time
WINDOW = 1024  # samples of a frame that torchcrepe looks at


# --- tones ---------------------------------------------------------------------------------------------------------------


def tones(count: int, seed: int, a_tone: int = 8) -> tuple[Array, Array]:
    """(count, 1024) frames as torchcrepe prepares them, mean 0 and deviation 1, and (count,) the pitch in their middle in Hz.

    Of each tone `a_tone` frames: 55 to 1500 Hz, harmonics that fall off at a rate of their own, in some tones vibrato (4 to 8 Hz,
    up to half a semitone), noise of 5 to 40 dB below the tone.
    """
    dice = np.random.default_rng(seed)
    length = RATE // 2
    time = np.arange(length) / RATE
    frames, pitches = [], []
    for _ in range(-(-count // a_tone)):
        middle = 55.0 * (1500 / 55) ** dice.random()
        depth = dice.random() * 0.5 * (dice.random() < 0.5)  # semitones
        pitch = middle * 2 ** (depth / 12 * np.sin(2 * np.pi * (4 + 4 * dice.random()) * time + 2 * np.pi * dice.random()))
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        numbers = np.arange(1, 1 + int(min(20, 7600 // (middle * 1.05))))
        loud = numbers ** -(0.3 + 1.7 * dice.random()) * (0.3 + 0.7 * dice.random(len(numbers)))
        sound = (loud[:, None] * np.sin(numbers[:, None] * phase + 2 * np.pi * dice.random((len(numbers), 1)))).sum(0)
        noise = dice.standard_normal(length) * sound.std() * 10 ** (-(5 + 35 * dice.random()) / 20)
        for start in dice.integers(0, length - WINDOW, a_tone):
            frames.append((sound + noise)[start : start + WINDOW])
            pitches.append(pitch[start + WINDOW // 2])
    found = np.stack(frames[:count])
    found = (found - found.mean(1, keepdims=True)) / found.std(1, keepdims=True, ddof=1)
    return found.astype(np.float32), np.array(pitches[:count], dtype=np.float32)


# --- voices --------------------------------------------------------------------------------------------------------------

VOWELS = np.array(  # the first three formants in Hz of a man's vowels, after Peterson and Barney (1952)
    [[270, 2290, 3010], [390, 1990, 2550], [530, 1840, 2480], [660, 1720, 2410], [730, 1090, 2440], [570, 840, 2410],
     [440, 1020, 2240], [300, 870, 2240], [640, 1190, 2390], [490, 1350, 1690]]
)  # fmt: skip


def voices(speakers: int, sentences: int, seed: int, block: int = 0, seconds: float = 1.75) -> Array:
    """(speakers, sentences, samples): each speaker has a pitch, a length of vocal tract, a tilt of the source and a breath of his
    own, and says vowels and hisses at random. `block`: other speakers of the same seed."""
    dice = np.random.default_rng([seed, block] if block else seed)
    found = np.zeros((speakers, sentences, int(RATE * seconds)), dtype=np.float32)
    for speaker in range(speakers):
        pitch, tract = 85 * 3 ** dice.random(), 0.85 + 0.5 * dice.random()
        colour, tilt, breath = 1 + 0.06 * dice.standard_normal(VOWELS.shape), 0.5 + dice.random(), 0.02 + 0.1 * dice.random()
        wide = np.array([60.0, 90.0, 150.0]) * (0.7 + 0.8 * dice.random())
        for sentence in range(sentences):
            found[speaker, sentence] = _said(dice, found.shape[2], pitch, VOWELS * tract * colour, wide, tilt, breath)
    return found


def _said(
    dice: np.random.Generator, length: int, pitch: float, formants: Array, wide: Array, tilt: float, breath: float
) -> Array:
    """One sentence: harmonics weighted by the resonances of vowels that glide into each other, and noise between them."""
    time = np.arange(length) / RATE
    syllables = 3 + int(dice.integers(5))
    places = np.linspace(0, length, syllables)
    said = formants[dice.integers(0, len(formants), syllables)]
    tract = np.stack([np.interp(np.arange(length), places, said[:, place]) for place in range(3)])  # (3, samples)
    melody = np.interp(np.arange(length), places, pitch * 2 ** (dice.normal(0, 2, syllables) / 12))
    phase = 2 * np.pi * np.cumsum(melody) / RATE + 2 * np.pi * dice.random()
    sound, turn, turned = np.zeros(length), np.exp(1j * phase), np.ones(length, dtype=complex)
    for number in range(1, int(4500 / pitch)):
        at, turned = number * melody, turned * turn  # a product is faster than a sine
        gain = sum(1 / (1 + ((at - tract[place]) / wide[place]) ** 2) / (place + 1) for place in range(3))
        sound += number**-tilt * (gain + 0.01) * turned.imag * (at < 7600)
    loud = np.interp(np.arange(length), places, 0.3 + 0.7 * dice.random(syllables)) * (
        0.6 + 0.4 * np.sin(2 * np.pi * 4 * time + 2 * np.pi * dice.random())
    )
    sound = sound / np.abs(sound).max() * loud
    sound += breath * np.diff(dice.standard_normal(length + 1)) * loud
    hiss = (np.interp(np.arange(length), places, (dice.random(syllables) < 0.25).astype(float)) > 0.8) * 0.3
    sound = sound * (hiss == 0) + hiss * np.diff(dice.standard_normal(length + 1), axis=0) * 0.5
    sound += 10 ** (-(25 + 20 * dice.random()) / 20) * 0.3 * dice.standard_normal(length)
    return (0.06 * sound / np.sqrt(np.mean(sound**2))).astype(np.float32)


def spoken(speakers: int, sentences: int, seed: int) -> Array:
    """(speakers * sentences, frames, 40): what resemblyzer looks at, of `voices`; made on all processors where they are many."""
    parts = [(min(BLOCK, speakers - first), sentences, seed, first // BLOCK) for first in range(0, speakers, BLOCK)]
    if len(parts) == 1:
        return _part(*parts[0])
    with multiprocessing.get_context("spawn").Pool() as pool:
        return np.concatenate(pool.starmap(_part, parts, chunksize=1))


def _part(speakers: int, sentences: int, seed: int, block: int) -> Array:
    said = voices(speakers, sentences, seed, block)
    return mels(said.reshape(speakers * sentences, -1))


# --- what resemblyzer looks at: 40 mel bands of power, 25 ms every 10 ms ---------------------------------------------------


def mels(sounds: Array, frames: int = 160) -> Array:
    """(n, samples) -> (n, frames, 40) as librosa's `melspectrogram(n_fft=400, hop_length=160, n_mels=40)` does at 16 kHz."""
    padded = np.pad(sounds, ((0, 0), (200, 200)))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    cuts = np.lib.stride_tricks.sliding_window_view(padded, 400, axis=1)[:, ::160][:, :frames]
    power = np.abs(np.fft.rfft(cuts * window, axis=-1)) ** 2
    return (power @ _bands().T).astype(np.float32)


def _bands(number: int = 40, points: int = 400) -> Array:
    """(40, 201) triangles of equal area on Slaney's mel scale, librosa's default."""
    low, step = 1000 * 3 / 200, np.log(6.4) / 27

    def hertz(mel: Array) -> Array:
        return np.where(mel < low, mel * 200 / 3, 1000 * np.exp(step * (mel - low)))

    top = low + np.log(RATE / 2 / 1000) / step
    edges = hertz(np.linspace(0, top, number + 2))
    bins = np.fft.rfftfreq(points, 1 / RATE)
    slopes = edges[:, None] - bins
    width = np.diff(edges)[:, None]
    weights = np.maximum(0, np.minimum(-slopes[:-2] / width[:-1], slopes[2:] / width[1:]))
    return np.asarray(weights * (2 / (edges[2:] - edges[:-2]))[:, None])
