"""In any order of events, no KV of other weights is stored or loaded under the name of the weights at hand."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from kvdepot.connector.commands import LoadCommand, StoreCommand
from tests.fakes.vllm import BLOCK, CHUNK, LookupCall, Request, SchedulerDriver

MOST_TOKENS = 32
BLOCKS = MOST_TOKENS // BLOCK
MOST_REQUESTS = 3


class GenerationWalk(RuleBasedStateMachine):
    """An engine whose weights change at any moment. `kv` has the weights that computed the KV of each request.

    The depot has every chunk that was stored, and no other one: `stored` is the number of their tokens by salt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.driver = SchedulerDriver(num_blocks=1 + 8 * MOST_REQUESTS * BLOCKS, training_run="run")
        self.weights = "at the start"
        self.count = 0
        self.requests: list[Request] = []
        self.kv: defaultdict[str, set[str]] = defaultdict(set)
        self.cached: set[str] = set()
        self.running: dict[int, StoreCommand | LoadCommand] = {}
        self.loading: dict[str, set[str]] = {}
        self.weights_of_salt = {"": self.weights}
        self.stored: dict[str, int] = {}

    def idle(self) -> list[Request]:
        return [request for request in self.requests if request.request_id not in self.loading]

    @rule(hits_locally=st.booleans(), num_tokens=st.sampled_from([0, 0, 4, 8, 16]))
    @precondition(lambda self: len(self.requests) < MOST_REQUESTS)
    def arrive(self, hits_locally: bool, num_tokens: int) -> None:
        """A request arrives. It waits, or vLLM admits it and computes some tokens."""
        self.count += 1
        request = Request(request_id=f"request-{self.count}", tokens=list(range(MOST_TOKENS)))
        self.requests.append(request)
        first = 1 + self.count % (8 * MOST_REQUESTS) * BLOCKS
        self.driver.tables[request.request_id] = (list(range(first, first + BLOCKS)),)
        self.driver.arrived.add(request.request_id)
        self.driver.scheduler.arrived(request)
        if num_tokens:
            self.admit(request, hits_locally)
            self.step(num_tokens)

    @rule(data=st.data(), hits_locally=st.booleans(), answers=st.booleans())
    @precondition(lambda self: any(not request.num_computed_tokens for request in self.idle()))
    def ask(self, data: st.DataObject, hits_locally: bool, answers: bool) -> None:
        """vLLM asks for a request that has no KV, and admits it when the depot answers."""
        request = data.draw(st.sampled_from([each for each in self.idle() if not each.num_computed_tokens]))
        if answers:
            self.admit(request, hits_locally)
        else:
            self.driver.scheduler.matched_tokens(request, 0)

    def admit(self, request: Request, hits_locally: bool) -> None:
        local = BLOCK if hits_locally and self.cached else 0
        found = self.driver.scheduler.matched_tokens(request, local)
        if found is None:
            self.answer(request)
            found = self.driver.scheduler.matched_tokens(request, local)
        assert found is not None
        kv = self.kv[request.request_id] = set(self.cached) if local else set()
        self.driver.scheduler.allocated(request, self.driver.tables[request.request_id], found)
        request.num_computed_tokens = local + found
        if found:
            salt = self.last_lookup(request).prefix.cache_salt
            assert self.weights_of_salt[salt] == self.weights, "KV of other weights is loaded"
            kv.add(self.weights)
            self.cached |= kv
            self.loading[request.request_id] = kv
            self.step(0)

    def last_lookup(self, request: Request) -> LookupCall:
        return next(each for each in reversed(self.driver.lookup_client.calls) if each.session_id == request.request_id)

    def answer(self, request: Request) -> None:
        calls, lookup = self.driver.lookup_client.calls, self.last_lookup(request)
        calls.remove(lookup)
        calls.append(lookup)  # the last one is answered
        self.driver.lookup_client.answer(self.stored.get(lookup.prefix.cache_salt, 0))

    @rule(num_tokens=st.sampled_from([4, 8, 16]))
    @precondition(lambda self: self.requests)
    def compute(self, num_tokens: int) -> None:
        self.step(num_tokens)

    def step(self, num_tokens: int) -> None:
        scheduled = {}
        for request in self.idle() if num_tokens else []:
            if count := min(num_tokens, MOST_TOKENS - request.num_computed_tokens):
                scheduled[request] = count
                self.kv[request.request_id].add(self.weights)
                self.cached.add(self.weights)
        commands = self.driver.step(scheduled)
        for store in commands.stores:
            self.running[store.transfer_id] = store
            salt = store.cache_salt
            assert self.kv[store.request_id] == {self.weights}, "KV of other weights is stored"
            assert self.weights_of_salt.setdefault(salt, self.weights) == self.weights
            self.stored[salt] = max(self.stored.get(salt, 0), len(store.chunk_hashes) * CHUNK)
        self.running.update({load.transfer_id: load for load in commands.loads})

    @rule(data=st.data())
    @precondition(lambda self: self.running)
    def end_transfer(self, data: st.DataObject) -> None:
        command = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        self.driver.mark_done(command.transfer_id)
        if isinstance(command, LoadCommand):
            self.loading.pop(command.request_id, None)

    @rule(data=st.data())
    @precondition(lambda self: self.idle())
    def preempt(self, data: st.DataObject) -> None:
        self.lose_blocks(data.draw(st.sampled_from(self.idle())))

    def lose_blocks(self, request: Request) -> None:
        request.num_computed_tokens = 0
        self.kv[request.request_id] = set()

    @rule(data=st.data())
    @precondition(lambda self: self.idle())
    def finish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.idle()))
        self.requests.remove(request)
        self.driver.scheduler.finished(request)

    @rule()
    @precondition(lambda self: not self.running)
    def empty_cache(self) -> None:
        for request in self.requests:
            self.lose_blocks(request)
        self.driver.scheduler.engine_cache_emptied()
        self.cached.clear()

    @rule()
    def update(self) -> None:
        self.count += 1
        self.weights = f"without a name, {self.count}"
        self.driver.scheduler.weights_changed("", "an update")

    @rule(version=st.sampled_from(["1", "2"]))
    def update_to_a_version(self, version: str) -> None:
        self.weights = f"version {version}"
        self.driver.scheduler.weights_changed(version, "an update")

    @rule()
    def reset(self) -> None:
        """The engine is asked to empty its cache, and refuses. Its weights may be other ones then."""
        self.count += 1
        self.weights = f"without a name, {self.count}"
        self.driver.scheduler.reset()


GenerationWalk.TestCase.settings = settings(max_examples=120, stateful_step_count=30)
test_generation_walk = GenerationWalk.TestCase
