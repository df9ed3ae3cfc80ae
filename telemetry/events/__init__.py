"""The events of the depot: a class for each type. Its docstring says when the event is published.

Events are in the past tense. Work that takes time is a `…Started` and a `…Finished` event with one
`operation_id`, which no other work has. Numbers are of tokens, chunks and bytes, as their names say. Durations are in
seconds of the monotonic clock.
"""

from __future__ import annotations

from telemetry.events import cache, operations, server, tiers
from telemetry.events.cache import BlockAllocation as BlockAllocation
from telemetry.events.cache import BlocksAllocated as BlocksAllocated
from telemetry.events.cache import CacheCleared as CacheCleared
from telemetry.events.cache import ChunksCorrupt as ChunksCorrupt
from telemetry.events.cache import ChunksEvicted as ChunksEvicted
from telemetry.events.cache import ChunksPrefetched as ChunksPrefetched
from telemetry.events.cache import ChunksRemoved as ChunksRemoved
from telemetry.events.cache import ChunksReused as ChunksReused
from telemetry.events.cache import ChunksStored as ChunksStored
from telemetry.events.cache import EvictionPolicyChanged as EvictionPolicyChanged
from telemetry.events.cache import LeaseEnded as LeaseEnded
from telemetry.events.cache import LeaseGranted as LeaseGranted
from telemetry.events.cache import PinEnded as PinEnded
from telemetry.events.cache import PrefixPinned as PrefixPinned
from telemetry.events.event import Event as Event
from telemetry.events.event import Publisher as Publisher
from telemetry.events.operations import LookupFinished as LookupFinished
from telemetry.events.operations import LookupStarted as LookupStarted
from telemetry.events.operations import RetrieveFinished as RetrieveFinished
from telemetry.events.operations import RetrieveStarted as RetrieveStarted
from telemetry.events.operations import StoreFinished as StoreFinished
from telemetry.events.operations import StoreStarted as StoreStarted
from telemetry.events.operations import TransferFinished as TransferFinished
from telemetry.events.operations import TransferStarted as TransferStarted
from telemetry.events.operations import TransferStep as TransferStep
from telemetry.events.server import CallDenied as CallDenied
from telemetry.events.server import CallRefused as CallRefused
from telemetry.events.server import CallServed as CallServed
from telemetry.events.server import FileRefused as FileRefused
from telemetry.events.server import FileReloaded as FileReloaded
from telemetry.events.server import InstanceAttached as InstanceAttached
from telemetry.events.server import InstanceDetached as InstanceDetached
from telemetry.events.server import LogLevelChanged as LogLevelChanged
from telemetry.events.server import RecordingEnded as RecordingEnded
from telemetry.events.server import ServerDraining as ServerDraining
from telemetry.events.server import ServerStarted as ServerStarted
from telemetry.events.server import ServerStopped as ServerStopped
from telemetry.events.server import SessionEnded as SessionEnded
from telemetry.events.server import SessionStarted as SessionStarted
from telemetry.events.tiers import IoWorkerEnded as IoWorkerEnded
from telemetry.events.tiers import TierAsked as TierAsked
from telemetry.events.tiers import TierRead as TierRead
from telemetry.events.tiers import TierStateChanged as TierStateChanged
from telemetry.events.tiers import TierWriteDropped as TierWriteDropped
from telemetry.events.tiers import TierWritten as TierWritten

EVENT_TYPES: dict[str, type[Event]] = {
    name: value
    for module in (server, operations, cache, tiers)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, Event) and value is not Event
}
