"""Planted bugs: the simulation must find every one of them.

A mutant replaces a piece of a function's source text. A piece that is not there any more is an error, so no
mutant can rot unnoticed.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["MUTANTS", "PATIENCE", "Mutant", "planted"]

PATIENCE = 800
"""Schedules within which a planted bug must be found."""


class Mutant(NamedTuple):
    """A bug: in `target` (module:Class.function), the text `old` becomes `new`.

    `seed`: a schedule that showed it late, which is tried first. Where it does so no more, the search is as long."""

    name: str
    target: str
    old: str
    new: str
    seed: int = 0


MUTANTS = (
    Mutant(
        "commit before publish",
        "stream.engine:Engine._take",
        """        await self._publish(fresh, scored, refused, offsets, batch)
        with self._suspects.at_work(names):  # the shadows score what is decided and published already
            self.scorer.beside.observe(scored)
        self._showing.dropped_shadows(self.scorer.beside.take_dropped())
        self._enter(fresh, batch, scored, refused, origins, twice)
""",
        """        self._enter(fresh, batch, scored, refused, origins, twice)
        await self._settle(intake)
        await self._publish(fresh, scored, refused, offsets, batch)
""",
    ),
    Mutant(
        "a queue is acknowledged before the commit",
        "stream.engine:Engine._batch",
        """        if self._stream:
            await intake.ack(""",
        """        if True:
            self._tag = 0
            await intake.ack(""",
    ),
    Mutant(
        "acknowledged with the batch that is still at work",
        "stream.engine:Engine._process",
        "        if self._suspects.killed",
        "        self._tag = fresh[-1].tag\n        if self._suspects.killed",
    ),
    Mutant(
        "state and position in two transactions",
        "stream.ledger:Ledger.commit",
        "        sizes: list[int] = []",
        """        sizes: list[int] = []
        await in_thread(self._store.commit, Changes(changes.position))""",
    ),
    Mutant(
        "a failed publish counts as done",
        "stream.engine:Engine._publish",
        """        if messages:
            await self._broker.publish(messages)
""",
        """        if messages:
            try:
                await self._broker.publish(messages)
            except BrokerUnreachable:
                pass
""",
        seed=82,
    ),
    Mutant(
        "no sequence check",
        "stream.arrivals:Arrivals.judge",
        "        if not len(slots):\n            return verdicts",
        "        if True:\n            return verdicts",
    ),
    Mutant(
        "what was processed before is processed again",
        "stream.engine:Engine._number",
        "return [delivery for delivery in deliveries if delivery.offset >= number]",
        "return list(deliveries)",
    ),
    Mutant(
        "offsets are taken to be contiguous",
        "stream.engine:Engine._enter",
        "StreamPosition(fresh[-1].offset,",
        "StreamPosition(self.position.last_offset + len(fresh),",
    ),
    Mutant(
        "only the last batch is committed",
        "stream.ledger:Ledger.add",
        "self._touched.append(touched)",
        "self._touched = [touched]",
    ),
    Mutant(
        "a swap is applied in the middle of a batch",
        "stream.engine:Engine.between_batches",
        "        done: asyncio.Future",
        """        if settled:
            await in_thread(self._store.commit, act())
            return 0.0
        done: asyncio.Future""",
    ),
    Mutant(
        "a swap does not wait for what is scored again",
        "stream.engine:Engine._take_turns",
        "if not (turn.settled and self._again)",
        "if True",
        seed=25,
    ),
    Mutant(
        "a suspect behind others is not taken singly",
        "stream.suspects:Suspects.most",
        "return max(i, 1)",
        "return 1 if i == 0 else len(deliveries)",
    ),
    Mutant(
        "the swapped model is not in the checkpoint",
        "stream.acts:Acts.apply",
        "return Changes(self._ledger.processed, models={swap.detector: (swap.reference, swap.previous)})",
        "return Changes(self._ledger.processed)",
    ),
    Mutant(
        "a command leaves no receipt in the checkpoint",
        "stream.ledger:Ledger.commit",
        "        sizes: list[int] = []",
        "        changes.commands = {}\n        sizes: list[int] = []",
    ),
    Mutant(
        "a stale tag is acknowledged after a reconnect",
        "stream.engine:Engine._settle",
        """        if self._tag and not self._stream:
            tag, self._tag = self._tag, 0
""",
        """        tag = max(self._tag, getattr(type(self), "_stale", 0))
        if tag and not self._stream:
            type(self)._stale, self._tag = tag, 0
""",
    ),
    Mutant(
        "the watchdog is off",
        "stream.engine:Engine.watch",
        "elif now - since >= self.topology.watchdog:",
        "elif False:",
    ),
    Mutant(
        "a full disk is ignored",
        "stream.ledger:Ledger.commit",
        "        finally:",
        """        except CheckpointError:
            sizes.append(0)
        finally:""",
    ),
    Mutant(
        "a damaged checkpoint is passed over",
        "stream.runtimes.local:Worker._run_once",
        "        saved = await in_thread(lane.store.load, topology.source.resident_machines)",
        """        try:
            saved = await in_thread(lane.store.load, topology.source.resident_machines)
        except CheckpointError:
            saved = Saved()""",
    ),
    Mutant(
        "state in memory outlives its engine",
        "stream.runtimes.local:Worker._run_once",
        "            scorer = Scorer(topology, built)",
        """            scorer = getattr(lane.metrics, "scorer", None) or Scorer(topology, built)
            lane.metrics.scorer = scorer
            saved.groups = [] if len(scorer.residents) else saved.groups""",
    ),
    Mutant(
        "a machine that was evicted starts afresh",
        "stream.roster:Roster.admit",
        "if self._ledger.machines > len(residents):",
        "if False:",
    ),
    Mutant(
        "what is evicted was not committed",
        "stream.roster:Roster.admit",
        "            await settle()\n            here",
        "            here",
    ),
    Mutant(
        "a loss to retention is not told",
        "stream.showing:Showing.lost",
        "self._metrics.gaps.inc(lost)",
        "pass",
        seed=101,
    ),
    Mutant(
        "a message counts as received only",
        "stream.ledger:Ledger._count",
        "self._metrics.processed.inc(tally.usable)",
        "pass",
    ),
    Mutant(
        "a fault is learned while its alert is open",
        "stream.ensemble:Ensemble._attempt",
        "            learn &= ~self.alerts.is_open(",
        "            self.alerts.is_open(",
    ),
    Mutant(
        "an alert that opens holds back nothing of its batch",
        "stream.ensemble:Ensemble._judge",
        "repeated = len(counts) < len(rows) and self._protects()",
        "repeated = False",
    ),
    Mutant(
        "a swap says that it was made and is not",
        "stream.verbs:Verbs._wanted",
        "        return ref\n",
        "        return self._models[detector].current\n",
    ),
    Mutant(
        "a rollback goes nowhere",
        "stream.verbs:Verbs._wanted",
        "            return previous\n",
        "            return self._models[detector].current\n",
    ),
    Mutant(
        "a pause ends with its process",
        "stream.engine:Engine.__init__",
        "self.paused = saved.paused",
        "self.paused = False",
        seed=109,
    ),
    Mutant(
        "a pause is not written down",
        "stream.engine:Engine._take_turns",
        "            await self._settle(intake, changes)",
        """            changes.paused = None
            await self._settle(intake, changes)""",
        seed=109,
    ),
    Mutant(
        "a command that comes out of order is carried out",
        "stream.commands:Docket.term",
        "if issued < last:",
        "if False:",
    ),
    Mutant(
        "the order of commands begins anew with each process",
        "stream.commands:Docket.__init__",
        "            self._follow(receipt, now)\n",
        "            pass\n",
        seed=71,
    ),
    Mutant(
        "a receipt is sent before it is written",
        "stream.control:Control._serve",
        """            if asked.verb == "status":
                await answer(receipt)
            await self._write()
            if asked.verb != "status":
                await answer(receipt)
""",
        """            await answer(receipt)
            await self._write()
""",
    ),
    Mutant(
        "any stream is taken for the one that was read",
        "stream.engine:Engine._first",
        "return await prove(intake, self.position, most=source.max_batch, linger=source.linger)",
        "return []",
        seed=30,
    ),
    Mutant(
        "a failed commit counts as done",
        "stream.ledger:Ledger.commit",
        "            if sizes:",
        "            sizes = sizes or [0]\n            if sizes:",
    ),
    Mutant(
        "suspects are never taken singly",
        "stream.suspects:Suspects.most",
        "return max(i, 1)",
        "return len(deliveries)",
    ),
    Mutant(
        "what kills the process is tried for ever",
        "stream.suspects:Suspects.__init__",
        "self._deaths.get(name, 0) + 1",
        "1",
    ),
    Mutant(
        "the count of a queue's messages begins anew",
        "stream.ledger:Ledger.__init__",
        "self.processed = saved.position",
        "self.processed = saved.position if saved.position.fingerprint else type(saved.position)()",
    ),
    Mutant(
        "sequence numbers begin anew with each process",
        "stream.arrivals:Arrivals.restore",
        "        self._table.restore(slots, rows)",
        """        self._table.restore(slots, {**rows, "seq": np.full_like(rows["seq"], -1)})""",
    ),
    Mutant(
        "what came before a counter began anew is processed again",
        "stream.arrivals:Arrivals.judge",
        " or (place <= past and time <= ended[key])",
        "",
    ),
    Mutant(
        "what an operator accepted is not learned",
        "stream.alerting:AlertTable.is_open",
        "np.where(is_open, accepted == 0,",
        "np.where(is_open, True,",
    ),
    Mutant(
        "what an operator closed opens again at once",
        "stream.alerting:AlertTable.close",
        "1 if learned else 2",
        "0",
        seed=26,
    ),
    Mutant(
        "what an operator closed is learned, though it is not to be",
        "stream.alerting:AlertTable.is_open",
        "accepted == 0, accepted == 2)",
        "accepted == 0, False)",
        seed=291,
    ),
    Mutant(
        "what an operator accepted is not in the checkpoint",
        "stream.acts:Acts.accept",
        "        self._ledger.touch(slots)\n",
        "",
    ),
    Mutant(
        "the limit of machines is not kept",
        "stream.roster:Roster.admit",
        "room = max(source.max_machines - self._ledger.machines, 0)",
        "room = len(missing)",
    ),
    Mutant(
        "the count of machines begins anew with each process",
        "stream.ledger:Ledger.__init__",
        "self.stored = saved.stored",
        "self.stored = 0",
    ),
    Mutant(
        "a dead letter that was sent back twice is processed twice",
        "stream.engine:Engine._enter",
        "self._replays.update(letters)",
        "pass",
        seed=76,
    ),
    Mutant(
        "dead letters that were sent back are not in the checkpoint",
        "stream.engine:Engine._enter",
        "messages=len(fresh), replays=letters)",
        "messages=len(fresh))",
        seed=40,
    ),
    Mutant(
        "a late reading that is sent back is late again",
        "stream.engine:Engine._take",
        "replayed=origins, careful",
        "replayed=(), careful",
        seed=40,
    ),
    Mutant(
        "a shadow ends with its process",
        "stream.runtimes.local:Worker._shadows",
        "            scorer.shadow(name, model, info_of(ref), **settings)",
        "            scorer.beside.end(name)",
        seed=44,
    ),
    Mutant(
        "a promotion puts the champion in place again",
        "stream.verbs:Verbs._promoted",
        "ref = msgspec.convert(plain, ModelRef)",
        "ref = self._models[detector].current",
        seed=43,
    ),
    Mutant(
        "a promoted shadow does not score",
        "stream.scorer:Scorer.promote",
        "lane.model, lane.info, lane.threshold = shadow.lane.model, shadow.lane.info, shadow.lane.threshold",
        "lane.info = shadow.lane.info",
        seed=80,
    ),
    Mutant(
        "a shadow takes its champion's place at once",
        "stream.shadows:Beside.begin",
        "        lane = self._lane(detector, model, info)\n",
        "        lane = self._lane(detector, model, info)\n        self._lanes[detector].model = model\n",
        seed=78,
    ),
    Mutant(
        "a receipt names another place",
        "stream.verbs:Verbs._swap",
        '{"first_offset": self._engine.position.next_offset}',
        '{"first_offset": self._engine.position.next_offset + 1}',
    ),
    Mutant(
        "a command that comes again is carried out again",
        "stream.commands:Docket.precedent",
        "        first = self.known(name)\n",
        "        first = None\n",
    ),
    Mutant(
        "a rollback by rule takes back whatever is there when its turn comes",
        "stream.control:Control._serve_verdicts",
        """                    async with self._one:
                        await self._take_back(detector, tried)
""",
        """                    swapped = beside.verdicts
                    verdict = beside.verdicts()
                    async with self._one:
                        beside.verdicts = lambda: verdict
                        try:
                            await self._take_back(detector, tried)
                        finally:
                            beside.verdicts = swapped
""",
    ),
    Mutant(
        "a rollback by rule bears the worker's time",
        "stream.control:Control._take_back",
        '{"id": name, "detector": detector}',
        '{"id": name, "detector": detector, "issued": self._clock.now()}',
        seed=520,
    ),
    Mutant(
        "a swap is not watched any more after a restart",
        "stream.shadows:Beside.restore",
        "self.probations[name] = Probation(rule, row[1])",
        "self.probations[name] = Probation(rule)",
    ),
    Mutant(
        "a swap is watched for ever",
        "stream.probation:Probation.add",
        "self._state.before = None",
        "pass",
        seed=56,
    ),
    Mutant(
        "a window does not wait for the machines of the one before",
        "stream.windows:Elapsed.after",
        "return Elapsed(waited={name: each for name, each in waited.items() if scored(name)})",
        "return Elapsed()",
        seed=143,
    ),
    Mutant(
        "a machine is waited for in one window and no more",
        "stream.windows:Elapsed.after",
        "_Waited(heard.last, _MISSED)",
        "_Waited(heard.last, 1)",
        seed=143,
    ),
    Mutant(
        "the watch over a swap waits for nobody who was heard before it",
        "stream.probation:Probation.swapped",
        "_State(before=before, current=_Record(elapsed=current.elapsed.after()))",
        "_State(before=before)",
        seed=143,
    ),
    Mutant(
        "machines that stopped are waited for without end",
        "stream.windows:Elapsed._is_over",
        "self.waited.clear()",
        "pass",
        seed=237,
    ),
    Mutant(
        "an alias that differs from what serves is an event",
        "stream.following:Follower._look",
        "        if seen is None",
        """        if seen is not None:
            serving = self._models[name].current
            seen = msgspec.structs.replace(seen, version=serving.version, digest=serving.digest)
            self._seen[name] = seen
        if seen is None""",
    ),
    Mutant(
        "an alias is looked at only when a webhook says so",
        "stream.following:Follower._follow",
        "async with asyncio.timeout(_pause(rule.poll, failures)):",
        "async with asyncio.timeout(None):",
        seed=38,
    ),
    Mutant(
        "a move to a version that was meant before is taken for the same",
        "stream.following:Follower._asked",
        "-v{now.version}-{now.moves}",
        "-v{now.version}-0",
    ),
    Mutant(
        "the move of a promotion is an event",
        "stream.following:Follower._due",
        "ours = seen is not None and found.version == seen.pointed",
        "ours = False",
        seed=43,
    ),
    Mutant(
        "the rates are not in the checkpoint",
        "stream.scorer:Scorer.components",
        "in self._tables()}",
        'in self._tables() if name != "rates"}',
    ),
    Mutant(
        "how long machines are known is not in the checkpoint",
        "stream.scorer:Scorer.components",
        "in self._tables()}",
        'in self._tables() if name != "kin"}',
    ),
    Mutant(
        "the state of shadows is not in the checkpoint",
        "stream.scorer:Scorer._tables",
        "        yield from self.beside.tables()\n",
        "",
        seed=57,
    ),
    Mutant(
        "shadows never score",
        "stream.engine:Engine._take",
        "            self.scorer.beside.observe(scored)\n",
        "            pass\n",
    ),
    Mutant(
        "a shadow begins without the alerts that are open",
        "stream.scorer:Scorer.shadow",
        "shadow.ensemble.alerts.restore(slots, ",
        "(slots, ",
        seed=96,
    ),
    Mutant(
        "a slot that is used again keeps another machine's past",
        "stream.scorer:Scorer.admit",
        "elif len(used) and self._fresh[name]:",
        'elif len(used) and self._fresh[name] and name != "recent":',
    ),
    Mutant(
        "an alert forgets at a restart what it has seen",
        "stream.alerting:AlertTable.restore",
        "self._columns.restore(slots, rows)",
        'self._columns.restore(slots, {**rows, "readings": rows["readings"] * 0})',
    ),
    Mutant(
        "every alert is of the lowest severity",
        "stream.alerting:AlertTable._advance",
        "severity = names[before if kind is EventKind.CLOSED else max(episode.severity, 0)]",
        "severity = names[0]",
    ),
    Mutant(
        "what an operator closes has no peak",
        "stream.scorer:Scorer.close_alert",
        "        episode, severity = ended\n",
        "        episode, severity = ended\n        episode.peak = 0.0\n",
        seed=26,
    ),
    Mutant(
        "every dead letter says that it cannot be decoded",
        "stream.engine:Engine._dead_letter",
        "delivery, error, identity",
        'delivery, ReadingRejected("not_decodable", ""), identity',
    ),
    Mutant(
        "a letter that is sent back twice counts as processed",
        "stream.engine:Engine._enter",
        'dict.fromkeys(twice, "duplicate")',
        "{}",
        seed=40,
    ),
    Mutant(
        "a loss to retention is told too small",
        "stream.showing:Showing.lost",
        "(steps[steps > 2] - 1).sum()",
        "(steps[steps > 2] - 2).sum()",
        seed=171,
    ),
    Mutant(
        "a command has no line in the audit",
        "stream.control:Control._carry_out",
        "            changes.audit = lines\n",
        "            changes.audit = []\n",
    ),
    Mutant(
        "strangers' commands are carried out",
        "stream.commands:Docket.admit",
        'asked.via == "broker" and asked.by not in self._operators',
        "False",
    ),
    Mutant(
        "expired commands are carried out",
        "stream.commands:Term.check",
        "if now > self.until:",
        "if False:",
    ),
    Mutant(
        "a command may expire while it waits for its turn",
        "stream.control:Control._carry_out",
        "            term.check(self._clock.now())\n",
        "",
        seed=57,
    ),
    Mutant(
        "another command under an id is answered like the first",
        "stream.commands:Docket.precedent",
        'if (first["verb"], first.get("body", asked.digest)) != (asked.verb, asked.digest):',
        "if False:",
    ),
    Mutant(
        "an end in order makes forget what may have been scored",
        "stream.engine:Engine.__init__",
        "saved.died or saved.unsettled",
        "saved.died",
        seed=53,
    ),
    Mutant(
        "a swap waits for one message",
        "stream.engine:Engine.run",
        "self._behind = rule.after + source.max_batch",
        "self._behind = 1",
        seed=638,
    ),
    Mutant(
        "a swap waits for less than was scored",
        "stream.engine:Engine.run",
        "self._behind = rule.after + source.max_batch",
        "self._behind = rule.after",
        seed=758,
    ),
    Mutant(
        "a reading may kill once more",
        "stream.suspects:Suspects.killed",
        ">= DEATHS",
        "> DEATHS",
    ),
    Mutant(
        "deaths but the last are forgotten",
        "stream.suspects:Suspects.__init__",
        "self._deaths = dict(work.deaths)",
        "self._deaths = {}",
    ),
    Mutant(
        "a letter that is refused again gets another id",
        "stream.engine:Engine._dead_letter",
        "return dead_letter(self.topology.name, delivery, error, identity=identity)",
        """letter = dead_letter(self.topology.name, delivery, error, identity=identity)
        again = {} if delivery.exchange else {"message_id": f"{letter.message_id}-again"}
        return msgspec.structs.replace(letter, **again)""",
    ),
    Mutant(
        "what a queue brings again is another letter",
        "stream.engine:Engine._dead_letter",
        "delivery.message_id or fingerprint(delivery)",
        "delivery.message_id",
    ),
    Mutant(
        "two copies of a letter in one batch are both processed",
        "stream.engine:Engine._origins",
        " or origin.letter in seen",
        "",
        seed=40,
    ),
    Mutant(
        "a reading is put aside after two deaths",
        "stream.suspects:Suspects.killed",
        ">= DEATHS",
        ">= DEATHS - 1",
    ),
    Mutant(
        "a message is put aside before it was read row by row",
        "stream.engine:Engine._take",
        "            if careful and not self.ledger.messages:",
        "            if len(fresh) == 1 and not self.ledger.messages:",
        seed=98,
    ),
    Mutant(
        "the stream goes on with what a failed detector left",
        "stream.engine:Engine._take",
        "            raise Poison(str(error)) from error",
        "            return",
        seed=62,
    ),
    Mutant(
        "who shares the budget is not saved",
        "stream.limits:Limits.tables",
        '            yield "census", self._census\n',
        "            pass\n",
        seed=62,
    ),
    Mutant(
        "the sensors' health is not saved",
        "stream.scorer:Scorer._tables",
        "            yield HEALTH, self._health\n",
        "            pass\n",
        seed=98,
    ),
    Mutant(
        "features are not saved",
        "stream.scorer:Scorer._tables",
        '            yield "features", self._features\n',
        "            pass\n",
        seed=62,
    ),
    Mutant(
        "calibrations are not saved",
        "stream.ensemble:Ensemble.tables",
        """            if lane.calibrator is not None:
                yield f"calibration:{lane.name}", lane.calibrator
""",
        "",
        seed=62,
    ),
    Mutant(
        "a machine that fell silent is not committed",
        "stream.scorer:Scorer.process",
        "            touched = np.union1d(touched, silent)\n",
        "",
        seed=135,
    ),
)


@contextlib.contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The product with this bug, for as long as the block runs."""
    module_name, _, path = mutant.target.partition(":")
    module = importlib.import_module(module_name)
    class_name, _, function_name = path.rpartition(".")
    owner: Any = getattr(module, class_name) if class_name else module
    healthy = owner.__dict__[function_name]
    source = inspect.getsource(healthy)
    if source.count(mutant.old) != 1:
        raise LookupError(f"{mutant.name}: {mutant.target} does not hold this text once:\n{mutant.old}")
    names: dict[str, Any] = {}
    text = "from __future__ import annotations\n" + textwrap.dedent(source.replace(mutant.old, mutant.new))
    scope = {**vars(module), **_extras()}
    exec(compile(text, f"<mutant: {mutant.name}>", "exec"), scope, names)  # the text is our own
    setattr(owner, function_name, names[function_name])
    before = dict(vars(owner))
    try:
        yield
    finally:
        setattr(owner, function_name, healthy)
        for name in set(vars(owner)) - set(before):  # what the bug left on the class
            delattr(owner, name)


def _extras() -> dict[str, Any]:
    from stream.errors import BrokerUnreachable, CheckpointError, ReadingRejected
    from stream.state import Changes, Saved
    from stream.threads import in_thread

    return {
        "BrokerUnreachable": BrokerUnreachable,
        "Changes": Changes,
        "CheckpointError": CheckpointError,
        "ReadingRejected": ReadingRejected,
        "Saved": Saved,
        "in_thread": in_thread,
    }
