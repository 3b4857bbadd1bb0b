"""Writes the images, videos and audio that pipelines generate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.domain.errors import PredictionFailed
from appliance.runners import audio

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS: Final = {"webp": "WEBP", "jpg": "JPEG", "png": "PNG"}
_AUDIO_PARTS: Final = (
    "vocoder",
    "vae",
    "unet",
)  # pipeline components whose config may have the sampling rate


class Audio(NamedTuple):
    """Generated audio: the whole output, or the sound track of a video."""

    samples: audio.Samples  # from -1 to 1, one row for each of one or two channels
    rate: int  # samples per second

    @property
    def seconds(self) -> float:
        return float(self.samples.shape[1] / self.rate)


def audio_of(result: Any, pipe: Any) -> Audio:
    """Return the audio in the result of a pipeline for audio.

    Raises:
        PredictionFailed: the configs of the pipeline have no sampling rate.
    """
    import numpy as np

    configs = [part.config for name in _AUDIO_PARTS if (part := getattr(pipe, name, None)) is not None]
    rates = (getattr(config, key, None) for config in configs for key in ("sampling_rate", "sample_rate"))
    rate = next((each for each in rates if each is not None), None)
    if rate is None:
        raise PredictionFailed(
            f"the configs of {type(pipe).__name__} have no sampling rate; use another model"
        )
    return Audio(np.atleast_2d(np.asarray(result.audios[0], dtype=np.float32)), int(rate))


def sound_track_of(result: Any, pipe: Any) -> Audio | None:
    """Return the sound track in the result of a pipeline with a vocoder, such as LTX-2; None for others."""
    sound, vocoder = getattr(result, "audio", None), getattr(pipe, "vocoder", None)
    if sound is None or vocoder is None:
        return None
    samples = sound[0].float().cpu().clamp(-1, 1).numpy()
    return Audio(samples.reshape(-1, samples.shape[-1]), int(vocoder.config.output_sampling_rate))


def write_images(made: list[Image], input: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write an image file for each image in ``made``."""
    suffix, files = input["output_format"], []
    quality = {} if suffix == "png" else {"quality": input["output_quality"]}
    for number, image in enumerate(made):
        file = folder / f"out-{number}.{suffix}"
        image.save(file, _FORMATS[suffix], **quality)
        files.append(file)
    return files


def write_audio(sound: Audio, input: Mapping[str, Any], folder: Path) -> Path:
    """Write an audio file in the format that ``input`` names."""
    file = folder / f"output.{input['output_format']}"
    audio.write(file, sound.samples, sound.rate)
    return file


def write_video(frames: list[Image], sound: Audio | None, input: Mapping[str, Any], folder: Path) -> Path:
    """Write an MP4 file in H.264 and AAC, which every browser plays, or an animated GIF without sound."""
    rate, suffix = input["fps"], input["output_format"]
    file = folder / f"output.{suffix}"
    if suffix == "gif":
        duration = round(1000 / rate)  # milliseconds
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=duration, loop=0)
        return file
    import av

    with av.open(str(file), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        track = None
        if sound is not None:
            layout = "mono" if len(sound.samples) == 1 else "stereo"
            track = container.add_stream("aac", rate=sound.rate, layout=layout)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
        if sound is not None and track is not None:
            samples = av.AudioFrame.from_ndarray(sound.samples, format="fltp", layout=layout)
            samples.sample_rate = sound.rate
            container.mux(track.encode(samples))
            container.mux(track.encode())
    return file
