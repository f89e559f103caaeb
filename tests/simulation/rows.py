"""Rows of steps that some mistakes take, and that chance seldom puts together."""

from __future__ import annotations

from typing import Final

from .steps import BIG_VALUE, LARGE_SKEW_S, LIMITS, NEVER_SET_S, OFF_S, WHOLE, Steps

SLOW_WHEN_RESTORED: Final = 0.3
STRANGE_KEY: Final = b"k721"  # of no history, and in one of the first leaves, too


class Rows(Steps):
    """Draws steps, and rows of them."""

    def _relapse(self) -> None:
        """The cluster goes on, and then a node is where it was before."""
        self._add("backup", name := self._node())
        for kind in self.chance.choices(("write", "round"), k=4):
            getattr(self, f"_{kind}")()
        self._round()
        if self.chance.random() < SLOW_WHEN_RESTORED:
            self._add("clock", name, -round(10 ** self.chance.uniform(-1, 4), 6))
        self._add("restore", name, self._seed())
        self._back(name)
        if self.chance.random() < 0.5:
            other = self.chance.choice(self._others(name))
            pair = self.chance.sample((name, other), 2)
            self._add("exchange", *pair, self.chance.choice((1, 2, 3)), "rests", self._seed())
            self._go_on(name, ("write",))
            self._add("exchange", *pair, WHOLE, "rests", self._seed())

    def _outgrown(self) -> None:
        """A value grows too large for a node, and a node that has it goes back to before."""
        small, holder, *others = self.chance.sample(self.history.names, len(self.history.names))
        other, key = self.chance.choice((holder, *others)), self.chance.choice(self.keys)
        self._add("limit", small, LIMITS[0])
        self._begin(small)
        for size in (0, BIG_VALUE):
            self.values += 1
            value = b"%d" % self.values + b"." * size
            if size or self.chance.random() < 0.7:
                self._add("write", holder, (("set", key, value),), True)
            for _ in range(self.chance.choice((0, 1, 2))):
                self._round()
            if not size or self.chance.random() < 0.5:
                self._add("backup", other)
        if self.chance.random() < 0.5:
            self._writes(holder, self.chance.choice(("set", "delete")))
        for _ in range(self.chance.choice((1, 2, 3))):
            self._round()
        if self.chance.random() < 0.7:
            self._add("restore", other, self._seed())
            self._begin(other)
        self._whole(*self.chance.sample((small, other), 2))
        if self.chance.random() < 0.5:
            self._add("limit", small, LIMITS[-1])
            self._begin(small)

    def _amnesia(self) -> None:
        """A node goes back to where it knew no other, and makes what it has stable with one that is new."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 3:
            return
        new, *cluster = names
        lost, *others = cluster
        for name in (lost, new):
            self._add("wipe", name)
            for by in others:
                self._add("remove", name, by)
        self._writes(self.chance.choice((lost, lost, new)), "set")
        if self.chance.random() < 0.3:
            self._add(
                "exchange", lost, self.chance.choice(others), self.chance.choice((1, 2, 3, 4)), "cut", self._seed()
            )
        self._add("backup", lost)
        for command in ("set", "delete"):
            if self.chance.random() < 0.7:
                self._writes(self.chance.choice(cluster), command)
            self._round(cluster)
        self._round(cluster)
        self._add("restore", lost, self._seed())
        self._add("start", lost)
        for _ in range(self.chance.choice((1, 2, 3))):
            self._round([lost, new])
        if self.chance.random() < 0.5:
            self._go_on(self.chance.choice((lost, new)), ("write",))
        self._whole(*self._two())

    def _revival(self) -> None:
        """A restored node gives a new one what was deleted, then deletes it again."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 3:
            return
        one, other, new = names[:3]
        for name in names:
            self._add("wipe", name)
        self._writes(one, "set")
        self._add("exchange", one, other, self.chance.choice((2, 3, 4, 5)), "cut", self._seed())
        self._add("backup", one)
        self._writes(one, "delete")
        for _ in range(self.chance.choice((1, 2))):
            self._whole(other, one)
        self._add("restore", one, self._seed())
        self._add("start", one)
        self._whole(one, new)
        if self.chance.random() < 0.5:
            self._round([one, new])
        self._greet(new, other)
        self._greet(new, one)
        self._whole(one, other)
        for _ in range(self.chance.choice((1, 2, 3))):
            self._whole(*self.chance.sample((one, other, new), 2))

    def _early(self) -> None:
        """A node tells its clock, and comes back with one that is behind that; what it deletes then is to last."""
        name, other = self._two()
        self._round()
        self._add("clock", name, round(10 ** self.chance.uniform(-1, 4), 6))
        if self.chance.random() < 0.5:
            self._whole(name, other)
        self._add("exchange", name, other, self.chance.choice((0, 1)), "unanswered", self._seed())
        self._add("exchange", other, name, self.chance.choice((1, WHOLE)), "cut", self._seed())
        self._add("crash", name, self._seed())
        self._add("clock", name, 0.0)
        self._begin(name)
        self._writes(name, "delete")
        self._whole(other, name)

    def _solo(self) -> None:
        """A node by itself deletes what others have from a dump of it, or have written themselves; then they meet."""
        name, other = self._two()
        for one in (name, other) if self.chance.random() < 0.5 else (name,):
            self._add("alone", one)
        for _ in range(self.chance.choice((1, 2))):
            self._writes(self.chance.choice((name, name, other)), "set")
            self._add("dump", name)
            if self.chance.random() < 0.7:
                self._add("load", other, self._seed())
            self._writes(self.chance.choice((name, name, other)), "delete")
            if self.chance.random() < 0.5:
                self._go_on(name, ("write", "checkpoint", "crash", "stop", "save", "backup", "clock", "arm"))
            self._add("start", name)
        if self.chance.random() < 0.3:
            self._add("backup", name)
        pair = self.chance.sample((name, other), 2)
        for _ in range(self.chance.choice((0, 1, 3))):
            how = self.chance.choice(("rests", "cut", "late", "unanswered"))
            self._add("exchange", *pair, self.chance.choice((0, 1, 2, 3, WHOLE)), how, self._seed())
            if self.chance.random() < 0.5:
                self._go_on(name, ("write", "connect"))

    def _echo(self) -> None:
        """A request arrives at a node that was restored since."""
        name, other = self._two()
        self._round()
        self._add("backup", name)
        self._go_on(other, ("write",))
        self._add("exchange", other, name, self.chance.choice((2, 3, 4, 5)), "late", self._seed())
        self._add("restore", name, self._seed())
        self._begin(name)
        self._add("arrive", name, self._seed())
        self._round()

    def _bequest(self) -> None:
        """A node leaves, and what it has deleted last has come to one of the others alone."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 3:
            return
        gone, heir, other = names[:3]
        self._round()
        self._writes(gone, "set")
        self._whole(gone, heir)
        self._whole(gone, other)
        self._writes(gone, "delete")
        self._whole(*self.chance.sample((heir, other), 2))
        self._whole(gone, heir)
        self._add("leave", gone)
        self._add("remove", gone, heir)
        self._greet(heir, other)

    def _stranger(self) -> None:
        """Two have met, and one of them meets a third that the other does not know yet."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 3:
            return
        one, other, third = names[:3]
        self._writes(one, "set")
        self._writes(third, "set")
        self._writes(third, "delete")
        self._whole(one, other)
        self._whole(other, one)
        self._whole(third, one)
        self._whole(one, third)

    def _unannounced(self) -> None:
        """A new node is known by its events alone, the last of which comes to one of the others only."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 3:
            return
        name, heir, other = names[:3]
        self._add("wipe", name)
        for by in (heir, other):
            self._add("connect", by)
            self._add("remove", name, by)
        self._add("connect", name)
        self._add("lose", heir, 0)
        self._add("lose", other, 0)
        self._whole(heir, other)
        self._writes(name, "set")
        self._add("publish", name, 9, "answered")
        self._add("deliver", heir, 20, 0)
        self._add("deliver", other, 20, 0)
        self._writes(name, "delete")
        self._whole(*self.chance.sample((heir, other), 2))
        self._add("publish", name, 9, "answered")
        self._add("deliver", heir, 20, 0)
        self._add("lose", other, 0)
        self._add("leave", name)
        self._greet(heir, other)

    def _unseen(self) -> None:
        """A record that no horizon has reached vanishes at one of the two nodes that have it."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 3:
            return
        one, other = names[:2]
        self._round()
        self._writes(one, "set")
        for _ in range(3):
            self._round([one, other])
        self._add("vanish", one, self._seed())
        self._whole(other, one)

    def _ahead(self) -> None:
        """A record vanishes at the one of two nodes whose horizon is further, or at the other."""
        if not (names := self._few(2)):
            return
        one, other = names
        for _ in range(self.chance.choice((0, 2))):
            self._round([one, other])
        self._writes(one, "set")
        for _ in range(self.chance.choice((1, 2, 3))):
            self._whole(other, one)
        self._add("vanish", other, self._seed())
        self._whole(*self.chance.sample((one, other), 2))

    def _unled(self) -> None:
        """A record vanishes at a node that does not follow the horizon below which all have it."""
        if not (names := self._few(4)):
            return
        one, other, third, away = names
        self._greet(third, away)
        self._add("wipe", away)  # so one member that the third node knows is never met
        self._writes(one, "set")
        for _ in range(self.chance.choice((1, 2))):
            self._whole(one, other)
        self._whole(other, third)
        self._whole(other, one)
        self._add("vanish", other, self._seed(), one)
        self._whole(other, one)

    def _straggler(self) -> None:
        """A node tells its clock to all, and what it wrote before to nobody; others delete the same keys meanwhile."""
        if not (names := self._few(3)):
            return
        late, one, other = names
        self._writes(one, "set")
        for _ in range(2):
            self._round([late, one, other])
        self._writes(late, "set")
        self._writes(one, "delete")
        self._whole(one, other)
        self._greet(late, one)
        self._greet(late, other)
        for _ in range(self.chance.choice((2, 3))):
            self._whole(*self.chance.sample((one, other), 2))
        self._whole(late, one)

    def _legacy(self) -> None:
        """One node alone has what a removed one has deleted last, and the others learn of the removal one by one."""
        if not (names := self._few(4)):
            return
        gone, heir, one, other = names
        for _ in range(2):
            self._round([gone, heir, one, other])
        self._writes(gone, "set")
        for name in (heir, one, other):
            self._whole(gone, name)
        self._writes(gone, "delete")
        self._round([heir, one, other])
        self._whole(gone, heir)
        self._add("leave", gone)
        self._add("remove", gone, one)
        for _ in range(self.chance.choice((2, 3))):
            self._whole(other, one)
        self._greet(heir, one)
        self._greet(heir, other)
        self._whole(*self.chance.sample((one, other), 2))
        self._whole(heir, one)

    def _hearsay(self) -> None:
        """A node has a deletion of a third, and its peer a horizon that did not wait for the third."""
        if not (names := self._few(3)):
            return
        one, other, third = names
        self._writes(one, "set")
        for _ in range(2):
            self._round([one, other])
        self._writes(third, "set")
        self._writes(third, "delete")
        for _ in range(self.chance.choice((1, 2))):
            self._whole(one, other)
        self._whole(third, other)
        self._add("leave", third)
        if self.chance.random() < 0.5:
            self._add("unreadable", other, self._seed())
        self._whole(other, one)

    def _worn(self) -> None:
        """A node that was started often is restored, meets a new one, and writes under a slow clock."""
        if not (names := self._few(3)):
            return
        one, worn, new = names
        self._add("clock", worn, 0.0)
        self._writes(worn, "set")
        for _ in range(self.chance.choice((0, 9))):
            self._add("write", worn, (("set", STRANGE_KEY, b"0"),), True)
            self._add("stop", worn)
            self._add("tick", 100.0)
            self._add("start", worn)
        self._add("write", worn, (("set", STRANGE_KEY, b"0"),), True)
        self._add("backup", worn)
        self._add("tick", 100.0)
        for _ in range(2):
            self._round([one, worn])
        self._add("clock", worn, -90.0)
        self._add("restore", worn, self._seed())
        self._add("start", worn)
        self._whole(worn, new)
        self._whole(one, new)
        self._writes(worn, "set")
        self._whole(worn, new)
        self._add("clock", worn, 0.0)

    def _disowned(self) -> None:
        """What a removed member wrote is deleted, and a restored node brings it back, to one that has joined since."""
        if not (names := self._few(4)):
            return
        gone, lost, other, new = names
        self._writes(gone, "set")
        for _ in range(3):
            self._round([gone, lost, other])
        self._add("leave", gone)
        for name in (lost, other):
            self._add("remove", gone, name)
        self._round([lost, other])
        self._add("backup", lost)
        self._writes(other, "delete")
        for _ in range(3):
            self._round([lost, other])
        self._whole(other, new)
        self._add("restore", lost, self._seed())
        self._add("start", lost)
        self._whole(lost, self.chance.choice((other, new)))
        self._whole(new, other)

    def _overdue(self) -> None:
        """An event arrives at a node that has exchanged since, and follows no horizon below which it was deleted."""
        if not (names := self._few(4)):
            return
        one, other, late, third = names
        self._add("connect", late)
        self._whole(late, third)
        self._add("connect", one)
        for name in (one, other):
            self._add("lose", name, 0)
        self._writes(one, "set")
        self._add("publish", one, 9, "answered")
        self._writes(one, "delete")
        self._add("publish", one, 9, "answered")
        self._add("lose", late, self._seed())
        for _ in range(3):
            self._round([one, other])
        self._whole(late, other)
        self._add("deliver", late, 20, 0)
        self._whole(late, other)

    def _few(self, count: int) -> list[str]:
        """So many nodes that know of no other; none if there are less."""
        names = [name for name in self.history.names if name not in self.left]
        if len(names) < count:
            return []
        for name in names:
            self._add("wipe", name)
        return self.chance.sample(names, count)

    def _widow(self) -> None:
        """A member is removed, and then a record vanishes that it wrote and all have applied."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 3:
            return
        gone, *others = names
        self._writes(gone, "set")
        for _ in range(3):
            self._round()
        self._add("leave", gone)
        for name in others:
            self._add("remove", gone, name)
        for _ in range(3):
            self._round(others)
        self._add("vanish", others[0], self._seed())
        self._whole(others[1], others[0])

    def _forgetful(self) -> None:
        """A restored node is started often before it meets the one node that has what it lost."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 4:
            return
        for name in names:
            self._add("wipe", name)
        one, lost, new, heir = names[:4]
        self._writes(one, "set")
        self._round([one, heir])
        self._add("backup", lost)
        self._writes(lost, "set")
        self._round([lost, heir])
        self._add("restore", lost, self._seed())
        self._add("tick", 100.0)
        for _ in range(self.chance.choice((0, 5, 12))):
            self._go_on(lost, ("write",))
            self._add("stop", lost)
            self._add("start", lost)
        for _ in range(2):
            self._round([lost, new])
        self._whole(heir, lost)

    def _detour(self) -> None:
        """A restored node meets one that has applied all, but follows no horizon: another group's, or its own."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 4:
            return
        one, lost, new, away = names[:4]
        for name in (new, away):
            self._add("wipe", name)
        # The two differ, or to greet each other is a whole exchange.
        self._add("write", new, (("set", STRANGE_KEY, b"0"),), True)
        self._writes(one, "set")
        for _ in range(2):
            self._round([one, lost])
        self._add("backup", lost)
        self._writes(one, "delete")
        for _ in range(2):
            self._round([one, lost])
        self._greet(new, away)
        self._add("wipe", away)  # so one member of its group is never met
        self._whole(new, away)
        self._whole(new, one)
        self._add("restore", lost, self._seed())
        self._add("start", lost)
        self._whole(lost, new)
        self._whole(new, one)

    def _groups(self) -> None:
        """Two groups become stable without each other, and then become one."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 3:
            return
        for name in names:
            self._add("wipe", name)
        half = self.chance.randint(1, len(names) - 1)
        groups = names[:half], names[half:]
        for group in groups:
            self._writes(self.chance.choice(group), "set")
            self._round(group)
        if self.chance.random() < 0.5:
            self._add("exchange", self.chance.choice(groups[0]), self.chance.choice(groups[1]), 3, "cut", self._seed())
        for group in groups:
            for command in self.chance.choice((("delete",), ("set", "delete"), ())):
                self._writes(self.chance.choice(group), command)
            for _ in range(2):
                self._round(group)
        for _ in range(self.chance.randint(1, 3)):
            self._whole(self.chance.choice(groups[0]), self.chance.choice(groups[1]))

    def _decay(self) -> None:
        """Records come into the base and are damaged there, and after a while the scrub comes by."""
        name = self._node()
        self._go_on(name, ("write",))
        if self.chance.random() < 0.7:
            self._round()
        self._add("checkpoint", name)
        self._add("rot", name, self._seed())
        for _ in range(self.chance.choice((0, 0, 1, 3))):
            self._go_on(name, ("write", "exchange", "checkpoint", "deliver"))
        self._add("scrub", name, self._seed())

    def _backwards(self) -> None:
        """A wall clock that was far ahead is set right, and its node writes on."""
        self._add("clock", name := self._node(), round(LARGE_SKEW_S * self.chance.uniform(0.5, 1), 6))
        self._go_on(name, ("write",))
        self._add("clock", name, 0.0)
        self._go_on(name, ("write",))

    def _jump(self) -> None:
        """A wall clock is far ahead for a while, with exchanges meanwhile; then its node writes on."""
        name = self._node()
        talks = []
        for other in self.chance.choices(self._others(name), k=self.chance.choice((1, 1, 2, 3))):
            how = self.chance.choices(("rests", "cut", "late", "unanswered"), (3, 1, 1, 2))[0]
            talks.append((other, self.chance.choice((0, 0, 1, 2, WHOLE)), how, self._seed()))
        self._add("jump", name, round(LARGE_SKEW_S * self.chance.uniform(0, 1), 6), tuple(talks))
        self._go_on(name, ("write", "write", "exchange", "crash", "stop"))
        self._writes(name, self.chance.choice(("set", "delete")))
        if self.chance.random() < 0.5:
            self._whole(*self.chance.sample((name, self.chance.choice(self._others(name))), 2))

    def _wrong_clock(self) -> None:
        """A wall clock is wrong for a while, by anything from a second to ten years, or was never set."""
        name = self.history.wrong
        self._add("clock", name, self._off_s())
        for _ in range(self.chance.choice((0, 1, 1, 2, 4))):
            self._go_on(name, ("write", "write", "exchange", "publish", "deliver", "crash", "stop", "checkpoint"))
        if self.chance.random() < 0.3:
            other = self.chance.choice(self._others(name))
            self._whole(*self.chance.sample((name, other), 2))
        if self.chance.random() < 0.3:
            self._add("lie", self.chance.choice(self._others(name)), name, self.chance.random() < 0.5, self._seed())
        if self.chance.random() < 0.7:
            self._add("clock", name, 0.0)

    def _wrong_start(self) -> None:
        """A wall clock is wrong before a start, at it, or after it."""
        name = self.history.wrong
        when = self.chance.choice(("before", "at", "after"))
        if when == "before":
            self._add("clock", name, self._off_s())
            self._go_on(name, ("write",))
        self._add(*self.chance.choice((("stop", name), ("crash", name, self._seed()))))
        if when == "at":
            self._add("clock", name, self._off_s())
        if when == "before":
            self._add("clock", name, 0.0)
        self._begin(name)
        if when == "after":
            self._add("clock", name, self._off_s())
        for _ in range(self.chance.choice((0, 1, 2))):
            self._go_on(name, ("write", "exchange", "exchange"))
        self._add("clock", name, 0.0)

    def _jumpy(self) -> None:
        """A wall clock jumps each second."""
        name = self.history.wrong
        for _ in range(self.chance.choice((3, 10))):
            self._add("clock", name, self._off_s())
            self._add("tick", 1.0)
            self._go_on(name, ("write", "exchange", "deliver"))
        self._add("clock", name, 0.0)

    def _off_s(self) -> float:
        if self.chance.random() < 0.15:
            return NEVER_SET_S
        return round(self.chance.choice(OFF_S) * self.chance.uniform(0.5, 1) * self.chance.choice((-1, 1)), 6)

    def _lie(self) -> None:
        self._add("lie", *self._two(), self.chance.random() < 0.5, self._seed())

    def _forge_event(self) -> None:
        self._add("forge_event", *self._two(), self._seed())

    def _forge(self) -> None:
        self._add("forge", self._node(), self._seed())

    def _greet(self, one: str, other: str) -> None:
        """Two tell each other what they know of the members, and do not go on to the data."""
        for first, second in ((one, other), (other, one), (one, other)):
            self._add("exchange", first, second, 1, "cut", self._seed())

    def _writes(self, name: str, command: str) -> None:
        """A command for all of the keys."""
        self.values += 1
        self._add("write", name, tuple((command, key, b"%d" % self.values) for key in self.keys), True)
