"""Every change of a model's state, together with its reservation and its event."""

from __future__ import annotations

from appliance.scheduler import policy
from appliance.scheduler.event_log import EventKind, EventLog
from appliance.scheduler.facts import Load, Residency, Sleep, SleepLevel, Unload, Wake
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import ModelState


class Transitions:
    """Changes the state of models, their reservations and the event log together."""

    def __init__(self, ledger: Ledger, event_log: EventLog) -> None:
        self._ledger = ledger
        self._event_log = event_log

    # -- loading -----------------------------------------------------------------------------------------

    def load(self, entry: ModelState, devices: tuple[str, ...], now: float) -> Load:
        """Load the model. ``devices`` must have enough free memory."""
        entry.transition_to(Residency.LOADING, now)
        entry.load_began, entry.copy_seconds = now, 0.0
        entry.claimed_devices = ()
        memory = self._ledger.memory_for(entry.demand, devices)
        self._ledger.reserve(entry, devices, memory)
        self._log(entry, EventKind.LOAD, now, reason=_load_reason(entry, now))
        return Load(entry.name, devices, memory, may_sleep=entry.demand.sleep_footprint is not None)

    def loaded(self, entry: ModelState, levels: frozenset[SleepLevel], now: float) -> None:
        seconds = entry.transition_to(Residency.READY, now)
        entry.load_seconds = max(0.0, seconds - entry.copy_seconds)
        entry.seconds_to_ready, entry.last_sleep_seconds = entry.last_sleep_seconds + seconds, 0.0
        entry.ready_since = entry.last_used = now
        entry.sleep_levels = levels
        entry.failures = 0
        for node in self._ledger.nodes_of(entry) if entry.avoided else ():
            entry.avoided.pop(node, None)
        entry.wanted = entry.pinned
        self._log(entry, EventKind.READY, now, seconds=seconds)

    def adopt(
        self,
        entry: ModelState,
        devices: tuple[str, ...],
        memory: int,
        levels: frozenset[SleepLevel],
        now: float,
    ) -> None:
        entry.transition_to(Residency.READY, now)
        self._ledger.reserve(entry, devices, memory)
        entry.seconds_to_ready = policy.expected_load(entry)
        entry.ready_since = entry.last_used = now
        entry.sleep_levels = levels
        entry.wanted = False
        self._log(entry, EventKind.ADOPTED, now)

    # -- sleeping and waking -----------------------------------------------------------------------------

    def sleep(
        self, entry: ModelState, level: SleepLevel, reason: str, now: float, on_behalf_of: str | None = None
    ) -> Sleep:
        """Put the model to sleep. It must be able to sleep, and main memory must be free for its weights."""
        footprint = entry.demand.sleep_footprint
        assert footprint is not None, f"model {entry.name} cannot sleep"
        entry.transition_to(Residency.FALLING_ASLEEP, now)
        entry.sleep_level = level
        main_memory = footprint.main_memory if level is SleepLevel.KEPT else 0
        self._ledger.reserve_main_memory(entry, main_memory)
        ready = now - entry.ready_since
        self._log(
            entry,
            EventKind.SLEEP,
            now,
            reason=reason,
            on_behalf_of=on_behalf_of,
            seconds=ready,
            idle=now - entry.last_used,
        )
        return Sleep(entry.name, level, footprint.residue, reason)

    def asleep(self, entry: ModelState, now: float) -> None:
        """Mark the model as asleep, and free its device memory except ``SleepFootprint.residue``."""
        assert entry.sleep_level is not None
        assert entry.demand.sleep_footprint is not None
        seconds = entry.transition_to(Residency.ASLEEP, now)
        entry.sleep_seconds[entry.sleep_level] = entry.last_sleep_seconds = seconds
        before = entry.reserved
        residue = min(entry.demand.sleep_footprint.residue, entry.reserved)
        self._ledger.reserve(entry, entry.devices, residue)
        freed = before - entry.reserved
        self._event_log.add(now, EventKind.ASLEEP, entry.name, entry.devices, freed, seconds=seconds)

    def wake(self, entry: ModelState, now: float) -> Wake:
        """Wake the model. Its devices must have enough free memory."""
        entry.transition_to(Residency.WAKING, now)
        entry.load_began = now
        entry.claimed_devices = ()
        memory = self._ledger.memory_for(entry.demand, entry.devices)
        self._ledger.reserve(entry, entry.devices, memory)
        self._log(entry, EventKind.WAKE, now, reason=_load_reason(entry, now))
        return Wake(entry.name)

    def woken(self, entry: ModelState, now: float) -> None:
        assert entry.sleep_level is not None
        seconds = entry.transition_to(Residency.READY, now)
        entry.wake_seconds[entry.sleep_level] = seconds
        entry.seconds_to_ready, entry.last_sleep_seconds = entry.last_sleep_seconds + seconds, 0.0
        entry.ready_since = entry.last_used = now
        entry.sleep_level = None
        entry.wanted = entry.pinned
        self._ledger.reserve_main_memory(entry, 0)
        self._log(entry, EventKind.WOKEN, now, seconds=seconds)

    # -- leaving -----------------------------------------------------------------------------------------

    def evict(
        self, entry: ModelState, reason: str, now: float, waiter: ModelState | None, *, sleep: bool
    ) -> list[Sleep | Unload]:
        """Put an idle model to sleep or unload it, whichever makes predictions wait less.

        Without ``sleep`` the model is unloaded. If main memory is too full for its weights, only sleeping
        models that were used less recently are unloaded now. The model stays ready until a later decision.
        """
        beneficiary = None if waiter is None else waiter.name
        level, main_memory = None, self._ledger.main_memory_for(entry)
        if sleep and entry.can_sleep:
            level = policy.cheapest_sleep_level(entry, now, main_memory, waiter)
            missing = self._missing_main_memory(entry) if level is SleepLevel.KEPT else 0
            if missing > 0:
                unloads = self._unload_older_sleepers(entry, missing, now)
                if unloads is not None:
                    return unloads
                level = policy.cheapest_sleep_level(entry, now, main_memory=0, waiter=waiter)
        if level is None:
            return [self.unload(entry, reason, now, beneficiary)]
        return [self.sleep(entry, level, reason, now, beneficiary)]

    def _missing_main_memory(self, entry: ModelState) -> int:
        device, footprint = self._ledger.main_memory_of(entry), entry.demand.sleep_footprint
        if device is None or footprint is None:
            return 0
        return footprint.main_memory - self._ledger.free(device)

    def _unload_older_sleepers(
        self, entry: ModelState, missing: int, now: float
    ) -> list[Sleep | Unload] | None:
        """Unload sleeping models to free ``missing`` bytes; return None if that is not possible now."""
        freed = self._ledger.main_memory_being_freed(entry)
        chosen: list[ModelState] = []
        for each in self._ledger.older_sleepers(entry):
            if freed >= missing:
                break
            if self._ledger.none_loading(each.devices):
                chosen.append(each)
                freed += each.main_memory
        if freed < missing:
            return None
        reason = f"main memory is needed for {entry.name}, which falls asleep"
        return [self.unload(each, reason, now, entry.name) for each in chosen]

    def drain(
        self,
        entry: ModelState,
        reason: str,
        now: float,
        on_behalf_of: str | None = None,
        *,
        sleep: bool = False,
    ) -> None:
        """Let running predictions finish before the model is unloaded.

        If the memory is freed for another model, predictions that are queued now may still start, for a
        limited time. With ``sleep`` the model may fall asleep instead of being unloaded.
        """
        quota = 0 if on_behalf_of is None else len(entry.queue)
        entry.sleep_after_drain = sleep
        entry.drain_quota, entry.drain_quota_until = quota, now + policy.quantum(entry)
        entry.drain_reason, entry.drained_for = reason, on_behalf_of
        entry.transition_to(Residency.DRAINING, now)
        if entry.queue:
            entry.waiting_since = now
        reason = f"{reason}: {len(entry.running)} predictions running, {quota} queued ones may still start"
        self._log(entry, EventKind.DRAIN, now, reason=reason, on_behalf_of=on_behalf_of)

    def leave_if_idle(self, entry: ModelState, now: float) -> list[Sleep | Unload]:
        """Put a model to sleep or unload it if it has had no prediction for long enough.

        It falls asleep after half of ``idle_unload_after``, but not before the end of its minimum residency.
        It is unloaded after the whole.
        """
        limit, idle_seconds = entry.demand.idle_unload_after, now - entry.last_used
        if limit is None:
            return []
        if now >= entry.last_used + limit:
            return [self.unload(entry, f"idle for {limit:g} s", now)]
        may_sleep = entry.state is Residency.READY and entry.can_sleep
        if may_sleep and now >= policy.idle_sleep_at(entry, limit):
            device = self._ledger.main_memory_of(entry)
            main_memory = 0 if device is None else self._ledger.free(device)
            level = policy.cheapest_sleep_level(entry, now, main_memory)
            if level is not None:
                return [self.sleep(entry, level, f"idle for {idle_seconds:g} s", now)]
        return []

    def unload(self, entry: ModelState, reason: str, now: float, on_behalf_of: str | None = None) -> Unload:
        """Unload the model. Its memory stays reserved until the engine confirms the unload."""
        self.stop(entry, reason, now, on_behalf_of)
        return Unload(entry.name, reason, entry.devices, entry.expected_peak)

    def stop(self, entry: ModelState, reason: str, now: float, on_behalf_of: str | None = None) -> None:
        """Mark the model as unloading. Its memory stays reserved until its worker process has ended."""
        since = entry.state_since if entry.state is Residency.ASLEEP else entry.ready_since
        self._log(
            entry,
            EventKind.UNLOAD,
            now,
            reason=reason,
            on_behalf_of=on_behalf_of,
            seconds=now - since,
            idle=now - entry.last_used,
        )
        entry.transition_to(Residency.UNLOADING, now)

    def gone(self, entry: ModelState, kind: EventKind, now: float, *, reason: str) -> None:
        """Mark the model as cold, and free all its memory. Its worker process has ended."""
        seconds = None if kind is EventKind.LOST else now - entry.state_since
        self._log(entry, kind, now, reason=reason, seconds=seconds)
        entry.transition_to(Residency.COLD, now)
        entry.sleep_level, entry.pending_unload, entry.node_removed = None, "", False
        self._ledger.release(entry)

    def _log(
        self,
        entry: ModelState,
        kind: EventKind,
        now: float,
        *,
        reason: str = "",
        on_behalf_of: str | None = None,
        seconds: float | None = None,
        idle: float | None = None,
    ) -> None:
        self._event_log.add(
            now,
            kind,
            entry.name,
            entry.devices,
            entry.reserved,
            reason=reason,
            on_behalf_of=on_behalf_of,
            seconds=seconds,
            idle=idle,
        )


def _load_reason(entry: ModelState, now: float) -> str:
    if entry.queue:
        count = len(entry.queue)
        predictions = "1 prediction" if count == 1 else f"{count} predictions"
        return f"{predictions} waiting for {entry.waited(now):.1f} s"
    return "pinned" if entry.pinned else "asked for"
