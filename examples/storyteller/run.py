"""A pipeline in one prediction: a language model writes, an image model draws, and a voice reads aloud.

It calls the other models of its appliance with Replicate's client, like any program. The environment has the
URL of the appliance and a token, which acts for the owner of this prediction.
"""

import tempfile
from typing import Any

import httpx
import replicate
from cog import BaseModel, BaseRunner, Input, Path

WRITER = "appliance/smollm2-135m-instruct"
PAINTER = "appliance/tiny-shapes"
SPEAKER = "appliance/piper-joe"


class Story(BaseModel):
    """The output."""

    text: str
    image: Path
    speech: Path


class Storyteller(BaseRunner):
    """Runs three models, one after the other."""

    def run(
        self,
        subject: str = Input(description="A coloured shape", default="a red circle"),
        max_tokens: int = Input(description="Longest text, in tokens", default=40, ge=5, le=200),
    ) -> Story:
        """Write, draw, read aloud."""
        print("writing")
        question = f"Write one short sentence about {subject}."
        words = replicate.run(WRITER, input={"prompt": question, "max_tokens": max_tokens, "temperature": 0})
        text = "".join(words).strip()
        print("drawing")
        image = saved(replicate.run(PAINTER, input={"prompt": subject, "output_format": "png"}), "image.png")
        print("reading aloud")
        speech = saved(replicate.run(SPEAKER, input={"text": text}), "speech.wav")
        return Story(text=text, image=image, speech=speech)


def saved(output: Any, name: str) -> Path:
    """Save the only file of an output: over plain HTTP the client returns its URL, else a file object."""
    file = output[0] if isinstance(output, list) else output
    content = file.read() if hasattr(file, "read") else httpx.get(file).raise_for_status().content
    place = Path(tempfile.mkdtemp()) / name
    place.write_bytes(content)
    return place
