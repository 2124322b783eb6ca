"""The part of AWS: a small HTTP endpoint with AWS HealthImaging's paths, which records every request it executes.

It answers whatever reaches it, deletes and foreign buckets too: what is missing from its record was stopped before it.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

DATASTORE = "5f1a0c9e2b7d4e83a6c4d1f09b8e7a25"
ROLE = "arn:aws:iam::123456789012:role/imaging-export"
_ARN = "arn:aws:medical-imaging:eu-central-2:123456789012:datastore/"
_SINCE = 1767225600.0
"""2026-01-01, in seconds since 1970."""

_IMAGE_SETS = [
    ("0f6d2b3c4a5e47689b1c2d3e4f506172", "PAT-0017", "CT thorax", 412),
    ("1a7e3c4d5b6f48790c2d3e4f50617283", "PAT-0017", "CT abdomen", 388),
    ("2b8f4d5e6c70498a1d3e4f5061728394", "PAT-0042", "MR head", 176),
]


@dataclass(frozen=True, slots=True)
class Executed:
    """One request that reached AWS: the operation's name in AWS's own terms, and its JSON body."""

    operation: str
    body: dict[str, Any]


def _datastore() -> dict[str, Any]:
    return {
        "datastoreId": DATASTORE,
        "datastoreName": "radiology",
        "datastoreStatus": "ACTIVE",
        "datastoreArn": _ARN + DATASTORE,
        "createdAt": _SINCE,
        "updatedAt": _SINCE,
    }


def _image_sets() -> list[dict[str, Any]]:
    return [
        {
            "imageSetId": image_set,
            "version": 1,
            "createdAt": _SINCE,
            "updatedAt": _SINCE,
            "DICOMTags": {
                "DICOMPatientId": patient,
                "DICOMStudyDescription": study,
                "DICOMNumberOfStudyRelatedInstances": instances,
            },
        }
        for image_set, patient, study, instances in _IMAGE_SETS
    ]


def _job(number: int) -> dict[str, Any]:
    return {
        "datastoreId": DATASTORE,
        "jobId": f"{number:032x}",
        "jobStatus": "SUBMITTED",
        "submittedAt": _SINCE,
    }


_OPERATIONS = [
    ("GET", r"/datastore", "ListDatastores"),
    ("GET", r"/datastore/[^/]+", "GetDatastore"),
    ("POST", r"/datastore", "CreateDatastore"),
    ("DELETE", r"/datastore/[^/]+", "DeleteDatastore"),
    ("POST", r"/datastore/[^/]+/searchImageSets", "SearchImageSets"),
    ("POST", r"/datastore/[^/]+/imageSet/[^/]+/deleteImageSet", "DeleteImageSet"),
    ("POST", r"/startDICOMExportJob/datastore/[^/]+", "StartDICOMExportJob"),
]


class Endpoint:
    """A running endpoint on 127.0.0.1. ``executed`` is everything that reached it, in order."""

    def __init__(self) -> None:
        self.executed: list[Executed] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="aws", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def counts(self) -> Counter[str]:
        """How often each operation was executed."""
        with self._lock:
            return Counter(request.operation for request in self.executed)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def execute(self, method: str, target: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Record one request, and answer it as AWS would."""
        path = urlsplit(target).path
        operation = next((o for m, p, o in _OPERATIONS if m == method and re.fullmatch(p, path)), f"{method} {path}")
        with self._lock:
            self.executed.append(Executed(operation, body))
            number = len(self.executed)
        match operation:
            case "ListDatastores":
                return 200, {"datastoreSummaries": [_datastore()]}
            case "GetDatastore":
                return 200, {"datastoreProperties": _datastore()}
            case "SearchImageSets":
                return 200, {"imageSetsMetadataSummaries": _image_sets()}
            case "StartDICOMExportJob":
                return 200, _job(number)
            case "CreateDatastore" | "DeleteDatastore":
                return 200, {"datastoreId": DATASTORE, "datastoreStatus": f"{operation[:5].upper()}ING"}
            case "DeleteImageSet":
                return 200, {"datastoreId": DATASTORE, "imageSetId": path.split("/")[4], "imageSetState": "LOCKED"}
            case _:
                return 404, {"message": f"this endpoint does not play {operation}"}


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = endpoint.execute(self.command, self.path, json.loads(raw) if raw else {})
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = do_PUT = _serve  # noqa: N815 (the names are http.server's)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the demo's terminal shows what matters."""

    return Handler
