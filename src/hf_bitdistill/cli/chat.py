"""`bitdistill chat MODEL [URL] [FLAGS]`: transformers' chat with a packed student.

Without URL a server of its own is started, and ends with the chat. FLAGS are those of `generate`: max_new_tokens=100 do_sample=False.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from huggingface_hub import is_offline_mode, set_async_client_factory

from .._compat import server_thread
from .serve import app_like, check_installed, find_served, kv_bits_parameter, parse_like


if TYPE_CHECKING:
    import typer


def typer_app() -> typer.Typer:
    from transformers.cli.chat import Chat

    return app_like(Chat, __doc__, {}, [kv_bits_parameter()], base_url=None)


def run(argv: list[str], prog: str) -> None:
    check_installed(prog)
    from transformers.cli.chat import Chat

    options = parse_like(Chat, argv, prog, __doc__, [kv_bits_parameter()], base_url=None)
    if options is None:
        return
    model_id, base_url, kv_bits = (options.pop(name) for name in ("model_id", "base_url", "kv_bits"))
    if base_url is not None and "://" not in base_url:  # the first of the flags
        options["generate_flags"] = [base_url, *(options["generate_flags"] or [])]
        base_url = None
    if base_url is not None and kv_bits != 16:
        raise ValueError("--kv-bits is an option of the server: give it to `bitdistill serve`.")
    if is_offline_mode():
        _speak_although_offline()
    server = contextlib.nullcontext(base_url) if base_url is not None else _own_server(model_id, kv_bits)
    with server as url, contextlib.suppress(KeyboardInterrupt, EOFError):
        Chat(model_id, url, **options)


def _speak_although_offline() -> None:
    """The chat speaks to its server through the Hub's client, which in offline mode refuses every address, this machine's own too."""
    from huggingface_hub.utils import httpx

    set_async_client_factory(lambda: httpx.AsyncClient(follow_redirects=True, timeout=None))


@contextlib.contextmanager
def _own_server(model_id: str, kv_bits: int) -> Iterator[str]:
    """Address of a server of this process, on a free port of this machine."""
    find_served(model_id)
    from transformers import AutoTokenizer

    from optimum.bitnet.serving import NativeServe

    if AutoTokenizer.from_pretrained(model_id).chat_template is None:
        raise ValueError(f"{model_id} has no chat template: it cannot chat; `bitdistill serve` completes texts.")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    serve = NativeServe(model_id, kv_bits, host="127.0.0.1", port=port, log_level="error", non_blocking=True)
    for name in ("uvicorn.access", "uvicorn.error"):  # (between the lines of the chat)
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        while not serve.server.started:
            if not server_thread(serve).is_alive():
                raise OSError(f"the server did not start on port {port}.")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.kill_server()
