"""A child that keeps a worker's side of the bargain with its supervisor, and does what it is told.

Started as a script with file descriptors, as a worker is. Who connects to its listener sends one JSON line and
gets one back: ``{"do": "state"}``, ``{"do": "ask", "kind": …, "body": …}``, ``{"do": "exit", "code":
…}``. ``KVGATE_TEST_WORKER`` says how it behaves otherwise: words with a comma between, of ``exit=N``
(at once), ``deaf`` (never answers news), ``stubborn`` (hears no drain and no SIGTERM).
"""

import json
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

Json = dict[str, Any]


class FakeWorker:
    def __init__(
        self, channel: socket.socket, listeners: dict[int, socket.socket], wishes: Json
    ) -> None:
        self.channel, self.listeners, self.wishes = channel, listeners, wishes
        self.listener: socket.socket | None = None
        self.unread = b""
        self.heard: list[Json] = []
        self.state: Json = {"pid": os.getpid(), "sid": os.getsid(0), "heard": self.heard}
        self.answers: dict[int, Json] = {}

    def run(self) -> NoReturn:
        self.say({"kind": "hears", "body": None})
        while True:
            wanted = [self.channel, *filter(None, [self.listener])]
            readable, _, _ = select.select(wanted, [], [])
            if self.channel in readable:
                self.read()
            else:
                self.serve()

    def read(self) -> None:
        data = self.channel.recv(65536)
        if not data:
            sys.exit(0)
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in lines:
            self.take(json.loads(line))

    def take(self, message: Json) -> None:
        if "re" in message:
            self.answers[message["re"]] = message
            return
        match message["kind"]:
            case "handover":
                self.state["handover"] = message["body"]
                self.listener = self.listeners.pop(message["body"]["worker"])
                for other in self.listeners.values():
                    other.close()
                self.say({"kind": "serving", "body": {"models": ["m"]}})
            case "drain" | "halt" if "stubborn" not in self.wishes:
                sys.exit(0)
            case "engines":
                self.state["engines"] = message["body"]
            case "numbers":
                self.say({"re": message["id"], "body": self.state.get("numbers")})
            case "news" if "deaf" not in self.wishes:
                self.heard.append(message["body"])
                self.say({"re": message["id"], "body": None})

    def say(self, message: Json) -> None:
        self.channel.sendall(json.dumps(message).encode() + b"\n")

    def serve(self) -> None:
        assert self.listener is not None
        connection, _ = self.listener.accept()
        with connection, connection.makefile("rwb") as file:
            wish = json.loads(file.readline())
            file.write(json.dumps(self.do(wish)).encode() + b"\n")

    def do(self, wish: Json) -> Any:
        match wish["do"]:
            case "count":
                self.state["numbers"] = wish["numbers"]
            case "push":
                self.say({"kind": "numbers", "body": wish["numbers"]})
            case "ask":
                number = len(self.answers) + 1
                self.say({"kind": wish["kind"], "id": number, "body": wish["body"]})
                while number not in self.answers:
                    self.read()
                return self.answers[number]
            case "exit":
                sys.exit(wish["code"])
        return self.state


if __name__ == "__main__":
    words = os.environ.get("KVGATE_TEST_WORKER", "").split(",")
    wishes = dict(word.partition("=")[::2] for word in words)
    if "exit" in wishes:
        sys.exit(int(wishes["exit"]))
    if "stubborn" in wishes:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    pairs = [name.split(":") for name in sys.argv[2:]]
    listeners = {int(number): socket.socket(fileno=int(fd)) for number, fd in pairs}
    for one in (channel, *listeners.values()):
        one.setblocking(True)
    FakeWorker(channel, listeners, wishes).run()
