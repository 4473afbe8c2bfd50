"""The same runs by Ray (https://ray.io): on the cluster that RAY_ADDRESS names, or on a Ray started on this machine.

Ray is given jobs and a function's name, and gives back the worker's events; what runs when, what is tried again and
what is kept is the engine's business as ever. On a cluster, files lie under the same paths on every machine.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec

from ayni.artefacts.files import write_atomic
from ayni.errors import AyniError, MissingExtraError
from ayni_coordinator.simulation.engine import Limits, Start, Stop
from ayni_coordinator.simulation.jobs import Event, Failed, Finished, Job, Progress
from ayni_coordinator.simulation.worker import ENVIRONMENT, outcome_of

_EVENTS = msgspec.json.Decoder(Event)
OBJECT_STORE_BYTES = 80_000_000  # the least that Ray takes: only events pass through it
STOP_S = 10.0


def require_ray() -> None:
    """Raises MissingExtraError where it is not installed, without importing it."""
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("--engine ray", "ray")


@contextmanager
def ray_workers(run: str, log: Callable[[Job], Path], limits: Limits) -> Iterator[Start]:
    """Whatever Ray starts ends with the `with`."""
    require_ray()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to anybody
    here = "RAY_ADDRESS" not in os.environ
    if here:
        # Named for other systems, but on Linux too it makes 127.0.0.1 the only address that Ray listens on
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # other users of this machine are served nothing either
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    with ExitStack() as stack:
        of_this_machine: dict[str, Any] = {}
        if here:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ayni-ray-"))
            of_this_machine = {
                "num_cpus": limits.num_workers, "include_dashboard": False, "_temp_dir": folder,
                "object_store_memory": OBJECT_STORE_BYTES,
            }  # fmt: skip
        stack.enter_context(redirect_stdout(sys.stderr))  # what Ray prints is no result
        stack.callback(ray.shutdown)
        _connect(of_this_machine)
        # a process for each run, as without Ray; the engine tries again itself
        task = ray.remote(num_cpus=1, max_calls=1, max_retries=0, num_returns="streaming")(_told)

        def start(job: Job, say: Callable[[Event], None]) -> Stop:
            told = task.options(name=job.name).remote(msgspec.json.encode(job), run)
            listener = threading.Thread(target=_listen, args=(told, log(job), say), name=job.name, daemon=True)
            listener.start()

            def stop() -> None:
                ray.cancel(told, force=True)
                listener.join(STOP_S)

            return stop

        yield start


def _connect(of_this_machine: dict[str, Any]) -> None:
    import ray

    surroundings = {"env_vars": ENVIRONMENT}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=surroundings, **of_this_machine)
    except (ConnectionError, RuntimeError) as error:
        place = os.environ.get("RAY_ADDRESS", "this machine")
        raise AyniError(f"no Ray could be reached or started at {place}: {str(error).splitlines()[0]}") from error


def _told(job_json: bytes, run: str) -> Iterator[bytes]:
    """In a process of Ray's: the events as they come, and last what went to standard error."""
    job = msgspec.json.decode(job_json, type=Job)
    events: SimpleQueue[Event] = SimpleQueue()
    with redirect_stderr(io.StringIO()) as words:

        def do() -> None:
            events.put(outcome_of(job, run, lambda done, num_steps: events.put(Progress(done, num_steps))))

        threading.Thread(target=do).start()
        event: Event | None = None
        while not isinstance(event, Finished | Failed):
            event = events.get()
            yield msgspec.json.encode(event)
    yield words.getvalue().encode()


def _listen(told: Any, log: Path, say: Callable[[Event], None]) -> None:
    import ray

    try:
        last: Event | None = None
        for reference in told:
            said: bytes = ray.get(reference)
            if isinstance(last, Finished | Failed):
                if said:
                    write_atomic(log, said)
                break
            last = _EVENTS.decode(said)
            if isinstance(last, Progress):
                say(last)
        assert isinstance(last, Finished | Failed)
        say(last)
    except ray.exceptions.RayError as error:  # out of memory, killed, or its machine is gone
        words = [f"Ray: {type(error).__name__}", *str(error).splitlines()[:1]]
        say(Failed(message=": ".join(words), died=True))
