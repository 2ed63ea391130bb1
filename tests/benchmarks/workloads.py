"""What is measured: the shapes of work, and who does it.

Every peer gets MANIFEST FOLDER CONCURRENCY and the endpoint's url, and does the same job: generate, download, keep.
"""

import heapq
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .endpoint import drawn_s

PATH = "/gemini/image/generate"
OURS, SCRIPT, TUNED = "banana-batch", "pasted script", "tuned aiohttp"


@dataclass(frozen=True, slots=True)
class Workload:
    """One shape of work.

    Attributes:
        latency_s: Of each paid call; with `sigma`, the median of a log-normal.
        peers: Who does it.
        rounds: Times that each does it, in turn.
        must: What is promised, in words.
    """

    name: str
    what: str
    jobs: int
    concurrency: int
    latency_s: float = 0.0
    sigma: float = 0.0
    image_bytes: int = 20_000
    peers: Sequence[str] = (OURS, SCRIPT, TUNED)
    rounds: int = 3
    must: str = ""

    @property
    def options(self) -> list[str]:
        """The endpoint's options."""
        return [
            f"--latency={self.latency_s}",
            f"--sigma={self.sigma}",
            f"--image-bytes={self.image_bytes}",
        ]

    def ideal_s(self) -> float:
        """Return how long perfect scheduling of the same latencies takes; 0 without any."""
        if not self.latency_s:
            return 0.0
        if not self.sigma:
            return self.latency_s * self.jobs / self.concurrency
        draws = random.Random(1)
        free = [0.0] * self.concurrency
        for _ in range(self.jobs):
            heapq.heapreplace(free, free[0] + drawn_s(draws, self.latency_s, self.sigma))
        return max(free)


WORKLOADS = (
    Workload("W1", "overhead: no latency, 20 KB", 5_000, 64, rounds=5, must="≥ 0.8 × script, ≥ 0.6 × tuned"),
    Workload("W2", "1 s calls, 256 in flight", 2_000, 256, 1.0, must="efficiency ≥ 0.91"),
    Workload("W2b", "5 s calls, 2,000 in flight", 20_000, 2_000, 5.0, rounds=1, must="efficiency ≥ 0.95"),
    Workload(
        "W2c", "calls as they really are, 1.5 MB", 1_632, 64, 0.6, 0.73, 1_500_000, (OURS,), 1, "efficiency ≥ 0.95"
    ),
    Workload("W3", "20 MB images", 300, 32, 0.2, image_bytes=20_000_000, rounds=2, must="≥ 1.0 × tuned"),
)


def quickened(workload: Workload) -> Workload:
    """Return a smaller form of a workload, for figures within two minutes."""
    jobs = {"W1": 2_000, "W2": 1_024, "W2c": 408, "W3": 60}.get(workload.name, workload.jobs)
    return replace(workload, jobs=jobs, rounds=min(workload.rounds, 3 if workload.name == "W1" else 1))


QUICK = tuple(quickened(workload) for workload in WORKLOADS if workload.name != "W2b")


def _ours(manifest: Path, folder: Path, concurrency: int, base_url: str) -> list[str]:
    return [
        sys.executable, "-m", "banana_batch", "run", str(manifest), "-o", str(folder / "out"), "-c", str(concurrency),
        "--base-url", base_url, "--yes", "--json", "-q",
    ]  # fmt: skip


def _peer(module: str) -> Callable[[Path, Path, int, str], list[str]]:
    def command(manifest: Path, folder: Path, concurrency: int, base_url: str) -> list[str]:
        arguments = [str(manifest), str(folder), str(concurrency), base_url + PATH]
        return [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments]

    return command


COMMANDS: dict[str, Callable[[Path, Path, int, str], list[str]]] = {
    OURS: _ours,
    SCRIPT: _peer("peer_script"),
    TUNED: _peer("peer_tuned"),
}


def write_manifest(path: Path, rows: int) -> Path:
    """Write a manifest of that many different prompts."""
    with path.open("w", encoding="ascii") as file:
        for number in range(rows):
            prompt = f"prompt {number:08d}: a lighthouse on a basalt cliff at dusk, 35mm, studio light, film grain"
            row = {"prompt": prompt, "model": "gemini-3-pro-image-preview", "aspect_ratio": "16:9", "image_size": "1K"}
            file.write(json.dumps(row) + "\n")
    return path
