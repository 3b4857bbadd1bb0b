"""A process that makes a Cog project of an archive runnable: ``python -m appliance.weights.build_project``.

What it prints is the build's log. The line that begins with the mark it was given has JSON: the folder of the
build, or the error.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from appliance.config import CogModel, FolderSource
from appliance.domain.errors import WeightsError
from appliance.weights import project
from appliance.weights.archive import unpack


def main(home: Path, archive: Path, name: str) -> dict[str, str]:
    """Unpack and build; ``home`` is the data folder, ``name`` the model's, for messages."""
    folder = project.unpacked(home, archive.name)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        print(f"{project.STEP}unpacking", flush=True)
        unpack(archive, folder)
        # A name that only messages hold need not be one that models.yaml could have.
        model = CogModel.model_construct(name=name, kind="cog", source=FolderSource(path=folder))
        return {"build": str(project.build(home, model, say=lambda line: print(line, flush=True)))}
    except WeightsError as error:
        return {"error": error.detail}
    except OSError as error:
        return {"error": f"{error.filename or home}: {error.strerror}"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    told = main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    print(sys.argv[4] + json.dumps(told), flush=True)
