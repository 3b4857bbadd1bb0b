"""Creates a version of the destination model when a training has succeeded."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from pathlib import Path
from typing import Final

from appliance.builds.fingerprint import fingerprint
from appliance.domain.access import UNRESTRICTED
from appliance.domain.errors import InvalidVersion, NotFound, OutputRemoved, PredictionFailed
from appliance.domain.file import OutputFile
from appliance.domain.model import Adapter
from appliance.domain.prediction import Prediction
from appliance.gateway.catalogue.catalogue import Catalogue, trained, version_of_adapter
from appliance.gateway.files.file_store import FileStore
from appliance.store import Store, VersionRow

_log = logging.getLogger(__name__)

#: Name of the folder of weights that a trainer may write and output as an archive; without it the output file
#: itself is the weights.
ADAPTER: Final = "adapter"


class Trainings:
    """Creates versions from trainings; used on the gateway's event loop only."""

    def __init__(self, catalogue: Catalogue, store: Store, files: FileStore) -> None:
        self._catalogue = catalogue
        self._store = store
        self._files = files

    async def fill(self, catalogue: Catalogue) -> None:
        """Add the versions of earlier trainings to ``catalogue`` if their base version is still served."""
        for adapter in await self._store.registry.adapters():
            self._serve(adapter, catalogue)

    async def finalize(self, record: Prediction) -> Prediction:
        """Create the version of a finished training; return the record with the version as its output.

        Raises:
            PredictionFailed: the destination model or the base version was deleted.
        """
        weights = record.output
        assert isinstance(weights, OutputFile), "a trainer's output is its adapter"
        assert record.destination is not None
        try:
            return await self._finalize(record, record.destination, weights)
        finally:
            await asyncio.to_thread(shutil.rmtree, self._unpacked(record), ignore_errors=True)

    async def _finalize(self, record: Prediction, destination: str, weights: OutputFile) -> Prediction:
        try:
            card = self._catalogue.card(destination, UNRESTRICTED)
        except NotFound as error:
            raise PredictionFailed(
                f"the destination model {destination} was deleted during the training"
            ) from error
        try:
            document = self._catalogue.by_version(record.version, UNRESTRICTED).document
        except InvalidVersion as error:
            raise PredictionFailed(
                f"version {record.version} of {record.model}, its base version, is no longer served"
            ) from error
        made = Path(self._files.outputs(record.id, record.attempt)) / ADAPTER
        if not made.is_dir():
            made = await self._local(record, self._files.folder / weights.path)
        content = await asyncio.to_thread(fingerprint, made)
        version = version_of_adapter(card.name, record.version, content)
        folder = self._files.folder / "versions" / version
        await asyncio.to_thread(_copy, made, folder)
        adapter = Adapter(
            version=version,
            model=card.name,
            base_model=record.model,
            base_version=record.version,
            training=record.id,
            created_at=round(time.time(), 6),
            path=f"versions/{version}" if made.is_dir() else f"versions/{version}/{made.name}",
        )
        await self._store.registry.add_adapter(adapter)
        await self._store.record_version(
            VersionRow(id=version, model=card.name, created_at=adapter.created_at, document=document)
        )
        await self._files.keep_version(version)
        self._serve(adapter, self._catalogue)
        _log.info("training %s created version %s of model %s", record, version, card.name)
        return record.evolve(output={"version": f"{card.name}:{version}", "weights": weights})

    async def remove(self, version: str) -> None:
        folder = self._files.folder / "versions" / version
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        self._files.delete_objects()

    async def _local(self, record: Prediction, weights: Path) -> Path:
        """Return the path of the weights on the disk: a copy if they may be encrypted or in a bucket.

        Raises:
            PredictionFailed: the weights were deleted.
        """
        if self._files.local_only:
            return weights
        folder = self._unpacked(record)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        await asyncio.to_thread(folder.mkdir)
        try:
            await self._files.copy_content(weights, folder / weights.name)
        except OutputRemoved as error:
            raise PredictionFailed("the weights that the training made were deleted") from error
        return folder / weights.name

    def _unpacked(self, record: Prediction) -> Path:
        return self._files.folder / "versions" / f".{record.id}"

    def _serve(self, adapter: Adapter, catalogue: Catalogue) -> None:
        base = catalogue.trainer(adapter.base_version)
        if base is None or adapter.model not in catalogue.cards:
            _log.warning(
                "version %s of model %s cannot run: its base version %s of model %s is not served",
                adapter.version, adapter.model, adapter.base_version, adapter.base_model,
            )  # fmt: skip
            return
        if all(entry.version != adapter.version for entry in catalogue.served(adapter.model)):
            entry = catalogue.by_version(adapter.base_version, UNRESTRICTED)
            catalogue.add_version(trained(entry, adapter, str(self._files.folder / adapter.path)))


def _copy(made: Path, target: Path) -> None:
    """Copy the file or folder ``made`` into the folder ``target``, completely or not at all."""
    if target.exists():
        return
    unfinished = target.with_name(f".{target.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        if made.is_dir():
            shutil.copytree(made, unfinished)
        else:
            unfinished.mkdir()
            shutil.copy(made, unfinished)
        unfinished.rename(target)
    finally:  # the folder is left if something failed
        shutil.rmtree(unfinished, ignore_errors=True)
