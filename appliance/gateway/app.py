"""Creates all objects of the gateway process from the config, starts them, and listens."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import ssl
import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import uvicorn
from cryptography.fernet import Fernet

from appliance.cluster.base import Cluster
from appliance.cluster.ray import RayCluster
from appliance.domain.budgets import Budgets
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import StoreError
from appliance.domain.local_url import host_and_port
from appliance.domain.prediction import Prediction
from appliance.domain.token import RunTokens
from appliance.gateway import connections
from appliance.gateway.api import Application, create_api, requests
from appliance.gateway.api.auth import Auth
from appliance.gateway.api.rate_limit import RateLimits
from appliance.gateway.api.services import Services
from appliance.gateway.catalogue.builds import ProjectBuilds
from appliance.gateway.catalogue.demands import capacities
from appliance.gateway.catalogue.servable import servable
from appliance.gateway.catalogue.trainings import Trainings
from appliance.gateway.engine import Dependencies, Engine
from appliance.gateway.engine.additions import Additions
from appliance.gateway.engine.devices import Devices
from appliance.gateway.engine.erasures import Erasures
from appliance.gateway.engine.reload import Reload, catalogue_of
from appliance.gateway.engine.sampler import Sampler
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.gateway.files.file_store import FileStore
from appliance.gateway.files.inputs import Inputs
from appliance.gateway.files.prediction_retention import Retention
from appliance.gateway.listener import receive_listener
from appliance.gateway.membership import build_nodes, serve_nodes, start_nodes
from appliance.gateway.settings import GatewaySettings, client_files
from appliance.gateway.sign_on import SignOn
from appliance.gateway.webhooks.sender import Webhooks
from appliance.machine import cpu_threads, on_node
from appliance.machine.disk import Storage
from appliance.machine.gpus import Gpus
from appliance.machine.memory_use import device_usage
from appliance.observability import logs, tracing
from appliance.observability.audit_log import AuditLog
from appliance.observability.history import History
from appliance.observability.metrics import Metrics
from appliance.observability.slow_predictions import SlowPredictions
from appliance.runners import child_environment
from appliance.scheduler import Event, Scheduler
from appliance.store import RETRY_STORE, Store, is_temporary
from appliance.store.encryption import FILES_KEY_ID, key_id

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.config import FilesConfig
    from appliance.gateway.files.bucket_transfer import BucketTransfer
    from appliance.gateway.files.encrypted_file import FileCipher
    from appliance.nodes.registry import NodeRegistry

_log = logging.getLogger(__name__)

OWN_PATIENCE = 30.0  # seconds to wait for a gateway that is just dying


async def build_services(
    settings: GatewaySettings, store: Store, cluster: Cluster, nodes: NodeRegistry | None = None
) -> Services:
    """Create all objects that the API needs, without starting any."""
    home = settings.home
    now = time.time()
    devices = on_node(settings.devices, settings.node) if settings.node else settings.devices
    hardware = settings.hardware
    found = servable(settings.config, home, hardware, now)
    config = found.config
    models = await catalogue_of(found, store)
    fetch_guard = FetchGuard(config.egress.allow)
    webhooks = Webhooks(store, fetch_guard, config.server.account)
    cipher = _file_cipher(store)
    transfer = _bucket_transfer(config.files, store, home / "files", cipher)
    files = FileStore(store.files, home / "files", config.files, cipher, transfer)
    trainings = Trainings(models, store, files)
    run_tokens = RunTokens(await store.files.secret("run-token-key", secrets.token_urlsafe(32)))
    sign_on_key = await store.files.secret("sign-on-key", Fernet.generate_key().decode())
    scheduler = Scheduler(capacities(devices), list(found.demands))
    metrics = Metrics(scheduler)
    cuda = [each for each in devices if each.kind == "cuda"]
    gpus = Gpus.connect() if cuda else None
    sampler = Sampler(History(), cuda, gpus)
    builds = ProjectBuilds(models, store, files, scheduler, home=home, hardware=hardware)
    traced = tracing.build(config.telemetry, os.environ)

    slow = SlowPredictions(config.logging.slow_after)

    def observe(record: Prediction) -> None:
        webhooks.observe(record)
        metrics.count_prediction(record)
        sampler.count_prediction(record)
        slow.observe(record)
        if traced is not None:
            traced.trace_prediction(record)

    def on_event(event: Event) -> None:
        metrics.count_event(event)
        sampler.count_event(event)

    def on_engine_metrics(model: str, measured: EngineMetrics) -> None:
        metrics.count_engine(model, measured)
        sampler.count_engine(model, measured)

    threads = config.hardware.threads or max(1, cpu_threads() - 1)
    current = Devices(devices, partial(device_usage, settings.devices, gpus), threads, hardware)
    policy = config.access_policy  # shared, because groups that an identity provider names are added to it
    dependencies = Dependencies(
        limits=config.limits,
        policy=policy,
        budgets=Budgets(config.budgets, policy, config.prices.per_second, config.prices.currency),
        catalogue=models,
        store=store,
        cluster=cluster,
        scheduler=scheduler,
        home=home,
        devices=current,
        cluster_config=settings.config.cluster,
        files=files,
        inputs=Inputs(files, fetch_guard, settings.run_dir / "inputs", home),
        run_tokens=run_tokens,
        observe=observe,
        on_event=on_event,
        on_engine_metrics=on_engine_metrics,
        finalize=trainings.finalize,
    )
    engine = Engine(dependencies)
    reload = Reload(
        file=settings.config_file,
        in_force=settings.config,
        home=home,
        run_dir=settings.run_dir,
        hardware=hardware,
        catalogue=models,
        store=store,
        cluster=cluster,
        engine=engine,
        builds=builds,
        trainings=trainings,
        left_out=found.left_out,
        pull=settings.pull,
    )
    auth = Auth(
        store,
        store.users,
        run_tokens,
        engine.running,
        policy,
        config.sign_on,
        engine.budgets.groups_changed,
    )
    return Services(
        config=config,
        catalogue=models,
        store=store,
        audit=AuditLog(store, config.audit),
        engine=engine,
        auth=auth,
        sign_on=SignOn(store.users, config, sign_on_key.encode()),
        rate_limits=RateLimits(
            requests=config.limits.requests_per_minute, predictions=config.limits.predictions_per_minute
        ),
        fetch_guard=fetch_guard,
        webhooks=webhooks,
        retention=Retention(store, files, config.retention_rules(policy), config.retention.outputs),
        erasures=Erasures(
            store=store,
            engine=engine,
            catalogue=models,
            files=files,
            trainings=trainings,
            builds=builds,
            forget_token=auth.forget,
        ),
        files=files,
        trainings=trainings,
        builds=builds,
        metrics=metrics,
        sampler=sampler,
        tracing=traced,
        cluster=cluster,
        storage=Storage(home),
        devices=current,
        reload=reload,
        additions=Additions(home, reload),
        nodes=nodes,
        started_at=now,
    )


def _file_cipher(store: Store) -> FileCipher | None:
    if store.data_key is None:
        return None
    from appliance.gateway.files.encrypted_file import FileCipher  # imports a large library

    return FileCipher(store.data_key)


def _bucket_transfer(
    config: FilesConfig, store: Store, folder: Path, cipher: FileCipher | None
) -> BucketTransfer | None:
    if config.s3 is None:
        return None
    from appliance.gateway.files.bucket import Bucket  # needs a library that is optional
    from appliance.gateway.files.bucket_transfer import BucketTransfer

    return BucketTransfer(Bucket(config.s3), store.files, folder, cipher)


class Gateway:
    """The running gateway of this process."""

    def __init__(
        self, services: Services, api: Application, server: uvicorn.Server, serving: asyncio.Task[None]
    ) -> None:
        self._api = api
        self._services = services
        self._server = server
        self._serving = serving

    async def reload(self) -> str:
        """Apply the edited models.yaml; return a report for people."""
        return str(await self._services.reload.apply(self._services.configure))

    async def drain(self, seconds: float) -> int:
        """Refuse new predictions, let running ones finish, then stop; return how many did not finish.

        Unfinished predictions stay stored, and the next start continues them.
        """
        unfinished = await self._services.engine.drain(seconds)
        await self._services.erasures.close()
        await self._services.sampler.close()
        await self._services.engine.close()
        if self._services.nodes is not None:
            await self._services.nodes.close()
        await self._services.additions.close()
        await self._services.reload.close()
        await self._services.webhooks.close()
        await self._services.retention.close()
        await self._services.builds.close()
        await self._services.files.close()
        if self._services.tracing is not None:
            await self._services.tracing.close()
        await self._services.audit.close()
        await self._services.store.close()
        await self._api.close()
        self._server.should_exit = True
        return unfinished

    def check(self) -> None:
        if self._serving.done() and not self._server.should_exit:
            raise RuntimeError("the gateway's HTTP server stopped")
        if (lost := self._services.store.lost) is not None:
            raise RuntimeError(f"the gateway stops: {lost}")


async def start_gateway(settings: GatewaySettings) -> Gateway:
    """Create and start the gateway on the running loop; return once it answers requests."""
    settings = msgspec.structs.replace(settings, config=settings.in_force)
    os.environ |= settings.secrets  # /proc/PID/environ shows only variables that a process was started with
    child_environment.hide(settings.secrets)
    logs.configure(settings.log_file, settings.config.logging)
    store = Store(settings.database, url=settings.config.store.url)
    await _open(store, None if settings.head is None else settings.head.term)
    if store.on_server and store.data_key is not None:
        _log.warning("the database on PostgreSQL is not encrypted by the appliance; files are encrypted")
        # A standby compares this id with that of its own key.
        await store.files.secret(FILES_KEY_ID, key_id(store.data_key))
    cluster = _cluster(settings)
    nodes = build_nodes(settings)
    services = await build_services(settings, store, cluster, nodes)
    services.auth.load_groups(await store.users.all())
    await services.files.start()
    await services.builds.load()
    await services.trainings.fill(services.catalogue)
    await services.webhooks.start()
    services.retention.start()
    services.audit.start()
    await services.engine.deployed()
    if nodes is not None:
        nodes.listen_to(services.engine.nodes)
    await start_nodes(nodes, settings)  # before the engine adopts models on nodes
    await services.engine.start()
    await services.erasures.resume()
    services.sampler.start(services.engine.status)
    services.additions.resume(services.configure)
    api = create_api(services, settings.ui_socket if settings.ui else None)
    server = uvicorn.Server(_server_config(api, settings))
    listener = await asyncio.to_thread(receive_listener, settings.listener_socket)
    serving = asyncio.get_running_loop().create_task(
        connections.serve(server, listener, partial(requests.is_proxy, services))
    )
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    serve_nodes(nodes, server, settings)
    _log.info("listening on %s", host_and_port(settings.host, settings.port))
    return Gateway(services, api, server, serving)


def _cluster(settings: GatewaySettings) -> RayCluster:
    outputs, section = settings.home / "files" / "outputs", settings.config.cluster
    if settings.head is None or section is None:
        return RayCluster(settings.zygote_socket, settings.run_dir, node=settings.node, outputs=outputs)
    first, last = section.ports.parallel
    return RayCluster(
        settings.zygote_socket,
        settings.run_dir,
        node=settings.node,
        address=settings.head.host,
        outputs=outputs,
        runs_models=settings.hardware.runs_models,
        ports=range(first, last + 1),
    )


async def _open(store: Store, term: int | None) -> None:
    """Open the database, and become its owner; wait while a database on a server does not answer."""
    while True:
        try:
            await store.open()
            break
        except StoreError as error:
            if not is_temporary(error):
                raise
            _log.error("%s: trying again", error)
            await asyncio.sleep(RETRY_STORE)
    while True:
        try:
            return await store.own(OWN_PATIENCE, term=term)
        except StoreError as error:
            if not is_temporary(error):
                raise
            _log.error("%s: trying again", error)
            await asyncio.sleep(RETRY_STORE)


def _server_config(api: Application, settings: GatewaySettings) -> uvicorn.Config:
    tls, files = settings.config.server.tls, client_files(settings.run_dir)
    needs_certificate = tls is not None and tls.client_ca is not None
    config = uvicorn.Config(
        api,
        log_config=None,
        access_log=False,
        lifespan="off",
        http=connections.Connection,
        timeout_keep_alive=75,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
        ssl_ca_certs=str(files.accepted) if needs_certificate else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if needs_certificate else ssl.CERT_NONE,
        server_header=False,
        proxy_headers=False,  # `requests.base_url` decides whom to believe
        date_header=False,
    )
    config.load()
    if tls is not None and tls.client_crl is not None and config.ssl is not None:
        config.ssl.load_verify_locations(files.revoked)
        config.ssl.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return config
