"""A chat-completions server on this computer that answers from the pictures' brightness, and misbehaves on demand."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import threading
import time
from collections import deque
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


class ChatServer:
    """Answers as a model would that takes a brighter picture for more progress.

    Attributes:
        faults: what the next requests meet, one each: a number (status), a pair of it and headers, "drop", "slow",
            "garbage" (no JSON), "strange" (JSON without choices), "refuse" (no content), "no-logprobs", "say:TEXT", or
            a function that answers the handler by itself.
        schemas: what is done with response_format: "take" (an answer in JSON), "ignore", a status that refuses it, or
            "say:TEXT", the answer to whatever has the field.
        bodies: what the next requests are answered with, whatever else they meet: JSON values, or bytes as they are.
        requests: bodies of the requests so far, and when they came (`time.monotonic`).
        headers: of these requests.
        slow_s: how long "slow" takes.
        delay_s: how long every answer takes.
        most_at_once: the most requests that were in work together.
    """

    def __init__(self) -> None:
        self.faults: deque[Any] = deque()
        self.schemas: Any = "take"
        self.bodies: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[Message] = []
        self.slow_s, self.delay_s = 0.1, 0.0
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.serve(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self.lock:
            self.times.append(time.monotonic())
            self.requests.append(json.loads(raw))
            self.headers.append(handler.headers)
            fault = self.faults.popleft() if self.faults else None
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            time.sleep(self.slow_s if fault == "slow" else self.delay_s)
            self._reply(handler, json.loads(raw), fault)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone: it timed out
        finally:
            with self.lock:
                self.at_once -= 1

    def _reply(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], fault: Any) -> None:
        if fault == "drop":
            handler.close_connection = True
            return
        if callable(fault):
            fault(handler)
            handler.close_connection = True
            return
        if "response_format" in body and fault is None and self.schemas not in ("take", "ignore"):
            fault = self.schemas
        status, headers = fault if isinstance(fault, tuple) else (fault if isinstance(fault, int) else 200, {})
        headers = dict(headers)
        if self.bodies:
            given = self.bodies.pop(0)
            data = given if isinstance(given, bytes) else json.dumps(given).encode()
        elif fault == "garbage":
            data = b'{"choices": [{"mess'
        elif fault == "strange":
            data = b'{"hello": "world"}'
        elif status != 200:
            key = handler.headers["Authorization"].removeprefix("Bearer ")
            data = json.dumps({"error": {"message": f"status {status} for {key}", "code": headers.pop("code", None)}})
            data = data.encode()
        else:
            data = json.dumps(completion(body, fault, in_json=self.schemas == "take")).encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(data)


def completion(body: dict[str, Any], fault: Any, *, in_json: bool = True) -> dict[str, Any]:
    """A chat completion for a request."""
    content = body["messages"][-1]["content"]
    if isinstance(fault, str) and fault.startswith("say:"):
        text: str | None = fault.removeprefix("say:")
    else:
        text = None if fault == "refuse" else answer(content)
        if text and in_json and "response_format" in body:
            text = as_json(text, body["response_format"]["json_schema"])
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    if body.get("logprobs") and fault != "no-logprobs":
        true = brightness([part for part in content if part["type"] == "image_url"][-1])
        top = [("True", 0.75 * true), (" True", 0.25 * true), ("False", 0.9 * (1 - true)), ("No", 0.1 * (1 - true))]
        listed = [{"token": token, "logprob": math.log(max(p, 1e-9)), "bytes": None} for token, p in top]
        choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed[: body["top_logprobs"]]}]}
    usage = {"prompt_tokens": 100 * len(content), "completion_tokens": 10, "total_tokens": 100 * len(content) + 10}
    head = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
    return {**head, "choices": [choice], "usage": usage}


def answer(content: list[dict[str, Any]]) -> str:
    """What the prompts of the three systems are answered with."""
    texts = [part.get("text") for part in content]
    if shown := [(place, text) for place, text in enumerate(texts) if text and re.fullmatch(r"Frame \d+:", text)]:
        return "\n".join(  # GVL
            f"{text} Frame Description: a scene, Task Completion Percentages: "
            f"{100 * brightness(content[place + 1]):.4f}%"
            for place, text in shown
        )
    if "Image 2:" in texts:  # RL-VLM-F, first stage
        first, second = (brightness(part) for part in content if part["type"] == "image_url")
        return f"Image 1 has {first:.6f} and Image 2 has {second:.6f} of the brightness."
    if found := re.findall(r"has (\d\.\d+)", texts[0] or ""):  # its second stage
        first, second = map(float, found)
        return "-1" if abs(first - second) < 0.01 else "0" if first > second else "1"
    if "Has the robot completed" in (texts[-1] or ""):  # SuccessVQA: bright at the end is done
        done = brightness([part for part in content if part["type"] == "image_url"][-1]) > 0.5
        return f"The last frame says it.\n{'Yes' if done else 'No'}."
    return "Hello."


def as_json(text: str, form: dict[str, Any]) -> str:
    """An answer of `answer` as the object that the schema has room for, in the order of the schema."""
    assert form["strict"]
    properties = form["schema"]["properties"]
    assert form["schema"]["required"] == list(properties)
    if "answer" in properties:
        return json.dumps({"answer": int(text)})
    rated = dict(re.findall(r"(Frame \d+):.*?: ([\d.]+)%", text))
    said = {name: {"Frame Description": "x", "Task Completion Percentages": float(rated[name])} for name in properties}
    return json.dumps(said)


def brightness(part: dict[str, Any]) -> float:
    """Mean of a picture in [0, 1]; it must be a PNG in a data URL."""
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return float(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean() / 255)
