"""A server that only sends back what it is sent: as little as ASGI can do, run as ours is."""

from __future__ import annotations

from typing import Any

import uvicorn

from cloudstore_mapping.web.connections import listen


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request with its own body."""
    body = b""
    more = scope["type"] == "http"
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve on a free port, print the address, and end by a signal."""
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        echo,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=20,
    )
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
