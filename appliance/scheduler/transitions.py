"""Every change of a model's residency, with what it reserves or frees and what is told of it."""

from __future__ import annotations

from appliance.scheduler import policy
from appliance.scheduler.event_log import EventKind, EventLog
from appliance.scheduler.facts import Level, Load, Residency, Sleep, Unload, Wake
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import ModelState


class Transitions:
    """A part of the scheduler, whose ledger and journal they are."""

    def __init__(self, ledger: Ledger, journal: EventLog) -> None:
        """Nothing has moved yet."""
        self._ledger = ledger
        self._journal = journal

    # -- in

    def load(self, entry: ModelState, devices: tuple[str, ...], now: float) -> Load:
        """The model is to be loaded there; the bytes are free."""
        entry.become(Residency.LOADING, now)
        entry.load_began = now
        entry.claim = ()
        memory = self._ledger.need(entry.demand, devices)
        self._ledger.reserve(entry, devices, memory)
        self._tell(entry, EventKind.LOAD, now, why=_why(entry, now))
        return Load(entry.name, devices, memory)

    def loaded(self, entry: ModelState, levels: frozenset[Level], now: float) -> None:
        """It is, and its host is able to sleep at these levels."""
        entry.load_seconds = entry.brought_in = entry.become(Residency.READY, now)
        entry.ready_since = entry.last_used = now
        entry.levels = levels
        entry.failures = 0
        entry.wanted = entry.pinned
        self._tell(entry, EventKind.READY, now, seconds=entry.load_seconds)

    def adopt(
        self, entry: ModelState, devices: tuple[str, ...], memory: int, levels: frozenset[Level], now: float
    ) -> None:
        """An earlier gateway left it loaded, and awake."""
        entry.become(Residency.READY, now)
        self._ledger.reserve(entry, devices, memory)
        entry.brought_in = policy.expected_load(entry)
        entry.ready_since = entry.last_used = now
        entry.levels = levels
        entry.wanted = False
        self._tell(entry, EventKind.ADOPTED, now)

    # -- to sleep and back

    def sleep(
        self, entry: ModelState, level: Level, reason: str, now: float, on_behalf_of: str | None = None
    ) -> Sleep:
        """It falls asleep, as ``may_sleep`` says that it can; main memory has room for its weights."""
        asleep = entry.demand.asleep
        assert asleep is not None, f"{entry.name} cannot sleep"
        entry.become(Residency.FALLING_ASLEEP, now)
        entry.level = level
        self._ledger.keep(entry, asleep.main if level is Level.KEPT else 0)
        ready = now - entry.ready_since
        self._tell(entry, EventKind.SLEEP, now, why=reason, on_behalf_of=on_behalf_of, seconds=ready)
        return Sleep(entry.name, level, asleep.residue, reason)

    def asleep(self, entry: ModelState, now: float) -> None:
        """It has fallen asleep, and holds its residue from now on."""
        assert entry.level is not None
        assert entry.demand.asleep is not None
        seconds = entry.become(Residency.ASLEEP, now)
        entry.sleep_seconds[entry.level] = seconds
        freed = entry.reserved
        self._ledger.reserve(entry, entry.devices, min(entry.demand.asleep.residue, entry.reserved))
        freed -= entry.reserved
        self._journal.add(now, EventKind.ASLEEP, entry.name, entry.devices, freed, seconds=seconds)

    def wake(self, entry: ModelState, now: float) -> Wake:
        """Its devices are its own again; the bytes are free."""
        entry.become(Residency.WAKING, now)
        entry.load_began = now
        entry.claim = ()
        self._ledger.reserve(entry, entry.devices, self._ledger.need(entry.demand, entry.devices))
        self._tell(entry, EventKind.WAKE, now, why=_why(entry, now))
        return Wake(entry.name)

    def woken(self, entry: ModelState, now: float) -> None:
        """It is ready again."""
        assert entry.level is not None
        seconds = entry.become(Residency.READY, now)
        entry.wake_seconds[entry.level] = seconds
        entry.brought_in = policy.expected_sleep(entry, entry.level) + seconds
        entry.ready_since = entry.last_used = now
        entry.level = None
        entry.wanted = entry.pinned
        self._ledger.keep(entry, 0)
        self._tell(entry, EventKind.WOKEN, now, seconds=seconds)

    # -- out

    def evict(
        self,
        entry: ModelState,
        reason: str,
        now: float,
        waiter: ModelState | None = None,
        *,
        sleep: bool = True,
    ) -> list[Sleep | Unload]:
        """Have an idle model leave its devices: asleep, or unloaded, whichever costs predictions less.

        Where main memory is short of what it needs to sleep, older sleepers are unloaded, and it follows once
        they have gone. Without ``sleep`` it is unloaded.
        """
        behalf = None if waiter is None else waiter.name
        level, main = None, self._ledger.main_for(entry)
        if sleep and entry.may_sleep:
            level = policy.tier(entry, now, main, waiter)
            short = self._short_of_main(entry) if level is Level.KEPT else 0
            if short > 0:
                moves = self._clear_main(entry, short, now)
                if moves is not None:
                    return moves
                level = policy.tier(entry, now, main=0, waiter=waiter)
        if level is None:
            return [self.unload(entry, reason, now, behalf)]
        return [self.sleep(entry, level, reason, now, behalf)]

    def _short_of_main(self, entry: ModelState) -> int:
        """Bytes of main memory that it lacks to sleep."""
        host, asleep = self._ledger.host, entry.demand.asleep
        if host is None or asleep is None:
            return 0
        return asleep.main - self._ledger.free(host)

    def _clear_main(self, entry: ModelState, short: int, now: float) -> list[Sleep | Unload] | None:
        """Unload older sleepers for ``short`` bytes; None if they cannot be just now."""
        coming = self._ledger.leaving_main()
        chosen: list[ModelState] = []
        for each in self._ledger.older_sleepers(entry):
            if coming >= short:
                break
            if self._ledger.still(each.devices):
                chosen.append(each)
                coming += each.main
        if coming < short:
            return None
        reason = f"makes room in main memory for {entry.name}, which falls asleep"
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
        """Let it finish what runs, and, if another model wants the room, what waits, for a bounded time.

        With ``sleep`` it may fall asleep then, instead of being unloaded.
        """
        quota = 0 if on_behalf_of is None else len(entry.queue)
        entry.drained_to_sleep = sleep
        entry.quota, entry.quota_until = quota, now + policy.quantum(entry)
        entry.drain_reason, entry.drained_for = reason, on_behalf_of
        entry.become(Residency.DRAINING, now)
        if entry.queue:
            entry.waiting_since = now
        why = f"{reason}; {len(entry.running)} run and {quota} may begin"
        self._tell(entry, EventKind.DRAIN, now, why=why, on_behalf_of=on_behalf_of)

    def idle(self, entry: ModelState, now: float) -> list[Sleep | Unload]:
        """Have it unloaded, or fall asleep, if nobody has wanted it for long."""
        limit, silent = entry.demand.idle_unload_after, now - entry.last_used
        if limit is None:
            return []
        if now >= entry.last_used + limit:
            return [self.unload(entry, f"idle for {limit:g} s", now)]
        first = limit * policy.IDLE_SLEEP
        if entry.state is Residency.READY and entry.may_sleep and now >= entry.last_used + first:
            room = 0 if self._ledger.host is None else self._ledger.free(self._ledger.host)
            level = policy.tier(entry, now, room)
            if level is not None:
                return [self.sleep(entry, level, f"idle for {silent:g} s", now)]
        return []

    def unload(self, entry: ModelState, reason: str, now: float, on_behalf_of: str | None = None) -> Unload:
        """Its host is to be stopped."""
        self.stop(entry, reason, now, on_behalf_of)
        return Unload(entry.name, reason)

    def stop(self, entry: ModelState, reason: str, now: float, on_behalf_of: str | None = None) -> None:
        """Its host is being stopped: nothing may start there, its memory is still taken."""
        slept = entry.state is Residency.ASLEEP
        seconds = now - (entry.state_since if slept else entry.ready_since)
        self._tell(entry, EventKind.UNLOAD, now, why=reason, on_behalf_of=on_behalf_of, seconds=seconds)
        entry.become(Residency.UNLOADING, now)

    def gone(self, entry: ModelState, what: EventKind, now: float, *, why: str = "") -> None:
        """Its host is no more, and its memory is free."""
        seconds = None if what is EventKind.LOST else now - entry.state_since
        self._tell(entry, what, now, why=why, seconds=seconds)
        entry.become(Residency.COLD, now)
        entry.level, entry.dismissed = None, ""
        self._ledger.release(entry)

    def _tell(
        self,
        entry: ModelState,
        what: EventKind,
        now: float,
        *,
        why: str = "",
        on_behalf_of: str | None = None,
        seconds: float | None = None,
    ) -> None:
        self._journal.add(
            now,
            what,
            entry.name,
            entry.devices,
            entry.reserved,
            why=why,
            on_behalf_of=on_behalf_of,
            seconds=seconds,
        )


def _why(entry: ModelState, now: float) -> str:
    if entry.queue:
        return f"{len(entry.queue)} wait for it, for {entry.waited(now):.1f} s"
    return "pinned" if entry.pinned else "asked for"
