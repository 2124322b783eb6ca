"""A stdio MCP server in plain Python for the tests of the bridge: every tool shows one thing a server can do.

Run as ``python stdio_script.py [legacy|modern|both]`` (default both: whatever comes first decides).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

_lock = threading.Lock()
_answers: dict[Any, Any] = {}
_answered = threading.Condition()
_cancelled: set[Any] = set()
_working: dict[Any, threading.Event] = {}


def send(**message: Any) -> None:
    with _lock:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def text(request_id: Any, said: str) -> None:
    send(id=request_id, result={"content": [{"type": "text", "text": said}]})


def ask(request_id: str, method: str) -> Any:
    send(id=request_id, method=method, params={})
    with _answered:
        _answered.wait_for(lambda: request_id in _answers, timeout=10)
    return _answers.get(request_id)


def tool(request_id: Any, params: dict[str, Any]) -> None:
    name, arguments = params["name"], params.get("arguments", {})
    token = params.get("_meta", {}).get("progressToken")
    match name:
        case "echo":
            text(request_id, json.dumps(arguments))
        case "pid":
            text(request_id, str(os.getpid()))
        case "progress":
            for step in range(arguments["steps"]):
                send(method="notifications/progress", params={"progressToken": token, "progress": step})
            text(request_id, "done")
        case "log":
            send(method="notifications/message", params={"level": "info", "data": "working"})
            text(request_id, "logged")
        case "ask":
            answer = ask(f"ask-{request_id}", arguments["method"])
            text(request_id, json.dumps(answer))
        case "wait":
            event = _working.setdefault(request_id, threading.Event())
            send(method="notifications/progress", params={"progressToken": token, "progress": 0})
            event.wait(20)
        case "release":
            for event in list(_working.values()):
                event.set()
            text(request_id, json.dumps(sorted(_cancelled)))
        case "answers":
            text(request_id, json.dumps(list(_answers)))
        case "stderr":
            sys.stderr.write(arguments["line"] + "\n")
            sys.stderr.flush()
            text(request_id, "said")
        case "flood":
            for _ in range(arguments["count"]):
                send(
                    method="notifications/progress",
                    params={"progressToken": token, "progress": 1, "message": "x" * 1000},
                )
            text(request_id, "done")
        case "grandchild":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            text(request_id, str(child.pid))
        case "junk":
            sys.stdout.write("this is no JSON\n")
            text(request_id, "sorry")
        case "long-line":
            sys.stdout.write("x" * arguments["bytes"] + "\n")
            sys.stdout.flush()
        case "exit":
            os._exit(arguments["status"])
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "update":
            send(method="notifications/tools/list_changed")
            text(request_id, "updated")
        case _:
            send(id=request_id, error={"code": -32602, "message": f"unknown tool {name}"})


def handle(message: dict[str, Any]) -> None:
    method, request_id, params = message.get("method"), message.get("id"), message.get("params", {})
    match method:
        case None:
            with _answered:
                _answers[request_id] = message.get("result", message.get("error"))
                _answered.notify_all()
        case "initialize" if "refuseMe" in params["capabilities"]:
            send(id=request_id, error={"code": -32602, "message": "refused"})
        case "initialize":
            result: dict[str, Any] = {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "script", "version": str(os.getpid())},
                "_meta": {"sawCapabilities": params["capabilities"]},
            }
            send(id=request_id, result=result)
        case "server/discover" if ERA == "legacy":
            send(id=request_id, error={"code": -32601, "message": "Method not found"})
        case "server/discover":
            send(id=request_id, result={"supportedVersions": ["2026-07-28"], "capabilities": {}})
        case "ping" | "resources/subscribe" | "resources/unsubscribe":
            send(id=request_id, result={"method": method})
        case "notifications/cancelled":
            _cancelled.add(params["requestId"])
            if params["requestId"] in _working:
                _working[params["requestId"]].set()
        case "subscriptions/listen":
            meta = {"io.modelcontextprotocol/subscriptionId": request_id}
            send(method="notifications/subscriptions/acknowledged", params={"_meta": meta})
        case "tools/call":
            threading.Thread(target=tool, args=(request_id, params), daemon=True).start()
        case _:
            if request_id is not None:
                send(id=request_id, error={"code": -32601, "message": "Method not found"})


ERA = sys.argv[1] if len(sys.argv) > 1 else "both"

if __name__ == "__main__":
    if ERA == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in sys.stdin:
        handle(json.loads(line))
    if ERA == "stubborn":
        time.sleep(60)
