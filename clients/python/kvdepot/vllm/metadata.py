"""The connector's messages between vLLM's scheduler and its workers, in the classes that vLLM carries."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from kvdepot.connector.commands import StepCommands, WorkerReport


@dataclass
class StepMetadata(KVConnectorMetadata):
    """The commands, as vLLM carries them to its workers."""

    commands: StepCommands


@dataclass
class ReportMetadata(KVConnectorWorkerMetadata):
    """A report, as vLLM carries it to its scheduler."""

    report: WorkerReport

    def aggregate(self, other: ReportMetadata) -> ReportMetadata:
        return ReportMetadata(self.report.aggregate(other.report))
