"""An engine on a real store and real echo models, in one process and without Ray."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec

from appliance.config import ClusterConfig, Config, FilesConfig, LimitsConfig, ModelConfig
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import StoreError
from appliance.domain.prediction import Prediction, Status
from appliance.domain.token import RunTokens
from appliance.gateway.catalogue.builds import ProjectBuilds
from appliance.gateway.catalogue.catalogue import Catalogue, ModelCard, ServedVersion, describe
from appliance.gateway.catalogue.trainings import Trainings
from appliance.gateway.engine import Dependencies, Engine
from appliance.gateway.engine.devices import Devices
from appliance.gateway.engine.reload import Reload
from appliance.gateway.engine.sampler import Sampler
from appliance.gateway.files.bucket import Bucket
from appliance.gateway.files.bucket_transfer import BucketTransfer
from appliance.gateway.files.encrypted_file import FileCipher
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.gateway.files.file_store import FileStore
from appliance.gateway.files.inputs import Inputs
from appliance.machine import Device, on_node
from appliance.machine.hardware import Hardware, hardware
from appliance.observability.history import History
from appliance.observability.metrics import Metrics
from appliance.observability.tracing import Tracing
from appliance.scheduler import Capacity, Demand, Event, Origin, Scheduler, SleepFootprint
from tests.support.appliance_process import PATIENCE
from tests.support.local_cluster import LocalCluster
from tests.support.store_files import opened

MIB = 1024**2
DEVICES = (Device(name="cpu", kind="cpu", memory=10 * MIB, label="A CPU"),)
HARDWARE = hardware(DEVICES, None)


def described(name: str = "test/echo", **options: Any) -> tuple[ModelCard, ServedVersion]:
    model = ModelConfig.model_validate({"name": name, "kind": "echo", "memory": MIB, "options": options})
    return describe(model, "none", 0.0)


def refusal(error: StoreError) -> asyncio.Future[None]:
    """Return a write that fails with ``error``."""
    written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    written.set_exception(error)
    return written


def entry(name: str = "test/echo", **options: Any) -> ServedVersion:
    return described(name, **options)[1]


def catalogue_of(*entries: ServedVersion) -> Catalogue:
    return Catalogue([describe(entry.model, "none", 0.0)[0] for entry in entries], entries, ())


class Bench:
    """An engine and its dependencies; ``restart`` makes new ones over the same database."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.folder = folder
        self.limits = LimitsConfig.model_validate({"cancel_grace": 0.2, **limits})
        self.echo = entry(concurrency=2)
        self.stream = entry("test/stream", stream=True)
        self.big = entry("test/big")
        self.files_model = entry("test/files", files=True)
        self.more: list[ServedVersion] = []
        self.allowed: tuple[str, ...] = ()  # networks that input files may be fetched from
        self.capacity = 10 * MIB
        #: Bytes of main memory for sleeping models; None if models cannot sleep.
        self.main: int | None = None
        self.asleep: SleepFootprint | None = None  # memory that the models in `more` use while they sleep
        self.estimated: dict[str, int] = {}  # bytes by model that declares none
        self.cluster = LocalCluster()
        self.observed: list[Prediction] = []
        self.tracing: Tracing | None = None
        self.files_config = FilesConfig.model_validate({"max_upload": "1MB", "max_input": "1MB"})
        self.node = ""  # name of this machine in a cluster
        self.cluster_config: ClusterConfig | None = None  # `cluster` of models.yaml
        self.runs_models = True  # false: only the other nodes of the cluster have devices
        self.only_on: dict[str, frozenset[str]] = {}  # by model: the nodes that it may be placed on
        self.machines: dict[str, int] = {}  # by model: the number of nodes that hold it together; else one
        self.cipher: FileCipher | None = None  # encrypts uploads and output files
        self.bucket: Bucket | None = None  # to which files are moved

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices; main memory is the last one, if models can sleep there."""
        main = Device(name="main", kind="cpu", memory=self.main or 0, label="A CPU", is_main_memory=True)
        return DEVICES if self.main is None else (*DEVICES, main)

    @property
    def hardware(self) -> Hardware:
        found = hardware(self.devices, None, self.node)
        return msgspec.structs.replace(found, runs_models=self.runs_models)

    async def start(self) -> Bench:
        entries = [self.echo, self.stream, self.big, self.files_model, *self.more]
        sizes = {"test/big": 100 * MIB, "test/large": 10 * MIB}
        demands = [
            Demand(
                model=entry.name,
                concurrency=entry.model.options.predictions_at_once,
                memory=self.estimated.get(entry.name, sizes.get(entry.name, MIB)),
                origin=Origin.ESTIMATED if entry.name in self.estimated else Origin.DECLARED,
                sleep_footprint=self.asleep if entry in self.more else None,
                nodes=self.only_on.get(entry.name),
                machines=self.machines.get(entry.name, 1),
            )
            for entry in entries
        ]
        demands += [
            Demand(model=entry.model.training_key, concurrency=1, memory=MIB)
            for entry in entries
            if entry.model.options.trainable
        ]
        self.store = await opened(self.folder / "appliance.db")
        await self.store.own()
        self.catalogue = catalogue_of(*entries)
        folder, transfer = self.folder / "files", None
        if self.bucket is not None:
            transfer = BucketTransfer(self.bucket, self.store.files, folder, self.cipher)
        self.files = FileStore(self.store.files, folder, self.files_config, self.cipher, transfer)
        await self.files.start()
        self.trainings = Trainings(self.catalogue, self.store, self.files)
        self.run_tokens = RunTokens("key")
        run = self.folder / "run" / "inputs"
        self.inputs = Inputs(self.files, FetchGuard(self.allowed), run, self.folder)
        if self.node:
            capacities = [Capacity(f"{self.node}/cpu", self.capacity, node=self.node)]
        else:
            capacities = [Capacity("cpu", self.capacity)]
        if self.main is not None:
            capacities.append(Capacity("main", self.main, is_main_memory=True))
        self.scheduler = Scheduler(capacities if self.runs_models else [], demands)
        self.metrics = Metrics(self.scheduler)
        self.sampler = Sampler(History())
        self.builds = ProjectBuilds(
            self.catalogue, self.store, self.files, self.scheduler, home=self.folder, hardware=self.hardware
        )
        local = [Device(name="cpu", kind="cpu", memory=self.capacity, label="A CPU")]
        local += self.devices[1:]
        local = list(on_node(local, self.node)) if self.node else local
        self.current_devices = Devices(local if self.runs_models else [], dict, 1, self.hardware)
        dependencies = Dependencies(
            limits=self.limits,
            catalogue=self.catalogue,
            store=self.store,
            cluster=self.cluster,
            scheduler=self.scheduler,
            home=self.folder,
            devices=self.current_devices,
            cluster_config=self.cluster_config,
            files=self.files,
            inputs=self.inputs,
            run_tokens=self.run_tokens,
            observe=self._observe,
            on_event=self._on_event,
            on_engine_metrics=self._on_engine_metrics,
            finalize=self.trainings.finalize,
        )
        self.engine = Engine(dependencies)
        await self.builds.load()
        await self.trainings.fill(self.catalogue)
        await self.let_nodes_join()
        await self.engine.start()
        return self

    async def let_nodes_join(self) -> None:
        """Do nothing: subclasses let the nodes of a cluster join here."""

    def _observe(self, record: Prediction) -> None:
        self.observed.append(record)
        self.metrics.count_prediction(record)
        self.sampler.count_prediction(record)
        if self.tracing is not None:
            self.tracing.trace_prediction(record)

    def _on_event(self, event: Event) -> None:
        self.metrics.count_event(event)
        self.sampler.count_event(event)

    def _on_engine_metrics(self, model: str, measured: EngineMetrics) -> None:
        self.metrics.count_engine(model, measured)
        self.sampler.count_engine(model, measured)

    def reload(self, in_force: Config) -> Reload:
        """Return the reload of ``models.yaml`` in the folder of the bench."""
        return Reload(
            file=self.folder / "models.yaml",
            in_force=in_force,
            pull=True,
            home=self.folder,
            run_dir=self.folder / "run",
            hardware=self.hardware,
            catalogue=self.catalogue,
            store=self.store,
            cluster=self.cluster,
            engine=self.engine,
            builds=self.builds,
            trainings=self.trainings,
            left_out={},
        )

    async def stop(self) -> None:
        await self.engine.close()
        await self.builds.close()
        await self.files.close()
        await self.store.close()

    async def restart(self) -> None:
        """As after a crash: the models are gone, only the database is left."""
        await self.stop()
        await self.cluster.close()
        self.cluster = LocalCluster()
        await self.start()

    async def submit(self, entry: ServedVersion | None = None, **input: Any) -> Prediction:
        return await self.engine.submit(
            entry or self.echo, input, owner="me", parent=None, token=None, trace=None
        )

    async def ended(self, prediction: Prediction) -> Prediction:
        record = await self.engine.wait(prediction.id, 60)
        assert record is not None
        assert record.status.terminal, record
        assert await self.store.get(prediction.id) == record  # what is shown is stored
        return record

    async def until(self, prediction: Prediction, status: Status) -> Prediction:
        deadline = time.monotonic() + PATIENCE
        while (record := await self.engine.get(prediction.id, "me")).status is not status:
            assert time.monotonic() < deadline, record
            await asyncio.sleep(0.005)
        return record

    async def output_of(self, prediction: Prediction) -> Prediction:
        deadline = time.monotonic() + PATIENCE
        while not (record := await self.engine.get(prediction.id, "me")).output:
            assert time.monotonic() < deadline, record
            await asyncio.sleep(0.005)
        return record
