"""A provider with a limit that it does not tell, in virtual time: what a pool makes of it."""

import heapq
import itertools
import random
from dataclasses import dataclass, field

from gymlet.upstream.lane import Lane, LaneLimits
from gymlet.upstream.pool import Ask, Pool


@dataclass
class Second:
    """What happened within one second."""

    sent: int = 0
    throttled: int = 0
    limits: list = field(default_factory=list)


def simulate(hidden, *, seconds=60, latency_s=0.2, demand=400, ceiling=1000, seed=1):
    """``demand`` clients that always want something. ``hidden(now)`` is the provider's limit; more get a 429."""
    return Simulation(hidden, latency_s, ceiling, random.Random(seed)).run(seconds, demand)


class Simulation:
    """Clients, a pool and a provider on one virtual clock."""

    def __init__(self, hidden, latency_s, ceiling, chance):
        self.hidden = hidden
        self.latency_s = latency_s
        self.chance = chance
        self.pool = Pool([Lane(0, "provider", LaneLimits(ceiling))], max_queued=100_000)
        self.events = []
        self.granted = []
        self.order = itertools.count()
        self.now = 0.0
        self.busy = 0

    def run(self, seconds, demand):
        history = [Second() for _ in range(seconds)]
        for _ in range(demand):
            self.ask()
        while self.now < seconds:
            second = history[int(self.now)]
            granted, self.granted = self.granted, []
            for waiting in granted + self.pool.decide(self.now):
                second.sent += 1
                second.throttled += not self.send(waiting)
            second.limits.append(self.pool.lanes[0].to_json(self.now)["limit"])
            self.tick()
        return history

    def tick(self):
        at = self.pool.next_at(self.now)
        times = [self.events[0][0]] if self.events else []
        self.now = min([*times, *([max(at, self.now + 1e-6)] if at is not None else [])])
        while self.events and self.events[0][0] <= self.now:
            _, _, action, arguments = heapq.heappop(self.events)
            action(*arguments)

    def send(self, waiting):
        taken = self.busy < self.hidden(self.now)
        if taken:
            self.busy += 1
            self.later(self.latency_s * self.chance.uniform(0.8, 1.2), self.answer, waiting.grant)
        else:
            self.later(0.005, self.refuse, waiting.grant, waiting.place)
        return taken

    def ask(self, place=None):
        waiting = self.pool.ask(Ask(place=place), self.now)
        if waiting.grant:
            self.granted.append(waiting)

    def answer(self, grant):
        self.busy -= 1
        self.pool.answered(grant, self.now)
        self.pool.ended(grant, "ok", self.now)
        self.ask()

    def refuse(self, grant, place):
        self.pool.ended(grant, "throttled", self.now)
        self.later(self.chance.random() * 0.5, self.ask, place)

    def later(self, delay_s, action, *arguments):
        heapq.heappush(self.events, (self.now + delay_s, next(self.order), action, arguments))
