"""A Cog project that takes a picture and gives one."""

import tempfile

from cog import BasePredictor, Input, Path
from PIL import Image


class Predictor(BasePredictor):
    def predict(
        self,
        image: Path = Input(description="Picture to resize"),
        scale: float = Input(description="Factor", default=2.0, ge=0.1, le=10),
        filter: str = Input(description="How", default="nearest", choices=["nearest", "bilinear"]),
    ) -> Path:
        with Image.open(image) as picture:
            wanted = [max(1, round(side * scale)) for side in picture.size]
            resized = picture.convert("RGB").resize(wanted, Image.Resampling[filter.upper()])
        place = Path(tempfile.mkdtemp()) / "resized.png"
        resized.save(place)
        return place
