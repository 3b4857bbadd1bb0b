"""Program that builds a pushed Cog project.

``python -m appliance.builds.build_project HOME ARCHIVE NAME MARK`` prints the log of the build. The last
line is ``MARK`` and JSON: the folder of the build, or the error.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from appliance.builds import project
from appliance.builds.archive import unpack
from appliance.config import CogModel, FolderSource
from appliance.domain.errors import WeightsError


def main(home: Path, archive: Path, name: str) -> dict[str, str]:
    """Unpack and build the project in the data folder ``home``; ``name`` is the model's name in messages."""
    folder = project.unpacked(home, archive.name)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        print(f"{project.STEP}unpacking", flush=True)
        unpack(archive, folder)
        # Not validated, because `name` need not be a valid name for models.yaml.
        model = CogModel.model_construct(name=name, kind="cog", source=FolderSource(path=folder))
        return {"build": str(project.build(home, model, say=lambda line: print(line, flush=True)))}
    except WeightsError as error:
        return {"error": error.detail}
    except OSError as error:
        return {"error": f"{error.filename or home}: {error.strerror}"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    result = main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    print(sys.argv[4] + json.dumps(result), flush=True)
