"""`bitdistill serve MODEL`: transformers' server, OpenAI's API, with a packed student on the native decoder."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any


if TYPE_CHECKING:
    import typer


def typer_app() -> typer.Typer:
    from transformers.cli.serve import Serve

    return app_like(Serve, __doc__, {}, [kv_bits_parameter()])


def run(argv: list[str], prog: str) -> None:
    check_installed(prog)
    from transformers.cli.serve import Serve

    options = parse_like(Serve, argv, prog, __doc__, [kv_bits_parameter()])
    if options is None:
        return
    check_free(options["host"], options["port"])
    force_model = options.pop("force_model")
    if force_model is not None:
        find_served(force_model)
    from optimum.bitnet.serving import NativeServe

    with contextlib.suppress(KeyboardInterrupt):
        NativeServe(force_model, **options)
    print(f"{prog}: stopped", file=sys.stderr)


def check_installed(prog: str) -> None:
    """Refuse to start without the packages of the extra `serving`.

    Raises:
        ImportError: naming them.
    """
    missing = [name for name in ("fastapi", "openai", "pydantic", "rich", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ImportError(f"{prog} needs {', '.join(missing)}: pip install 'hf-bitdistill[serving]'")


def kv_bits_parameter() -> inspect.Parameter:
    """An option of our servers that transformers' have not."""
    import typer

    text = "Keys and values of the native decoder: 32, 16 or 8 bits. 8 take half of the memory, and long contexts half of the time."
    annotation = Annotated[int, typer.Option(help=text)]
    return inspect.Parameter("kv_bits", inspect.Parameter.KEYWORD_ONLY, default=16, annotation=annotation)


def parse_like(
    command: type, argv: Sequence[str], prog: str, text: str, own: Sequence[inspect.Parameter] = (), **defaults: Any
) -> dict[str, Any] | None:
    """The options of a command of transformers, by its own parser; `None`: only help was asked for.

    Args:
        own: options that it has not.
        defaults: in place of the command's own.
    """
    found: dict[str, Any] = {}
    app = app_like(command, text, found, own, **defaults)
    try:
        app(args=list(argv), prog_name=prog)
    except SystemExit as end:
        if end.code:
            raise
    return found or None


def app_like(
    command: type, text: str, found: dict[str, Any], own: Sequence[inspect.Parameter] = (), **defaults: Any
) -> typer.Typer:
    """A command line of the options of a command of transformers, which puts them into `found`; other arguments as of [`parse_like`]."""
    import typer

    signature = inspect.signature(command)
    parameters = [
        parameter.replace(default=defaults.get(name, parameter.default))
        for name, parameter in signature.parameters.items()
    ]
    parameters += own

    def collect(**options: Any) -> None:
        found.update(options)

    vars(collect)["__signature__"] = signature.replace(parameters=parameters, return_annotation=None)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help=text)(collect)
    return app


def check_free(host: str, port: int) -> None:
    """Refuse a port that is taken, before a model is loaded.

    Raises:
        OSError: naming it.
    """
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as tried:
            if os.name == "posix":  # (as the server itself: what a closed one left behind is no reason to refuse)
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(address)
            except OSError as error:
                raise OSError(
                    f"cannot listen on {host} port {port}: {error.strerror}; choose another one with --port."
                ) from error


def find_served(name: str) -> None:
    """Refuse a name that is no model, see [`~hf_bitdistill.modeling.locate.find_model`]; a revision may follow an `@`, a GGUF file a colon.

    Raises:
        ValueError: it is a GGUF file.
    """
    from ..modeling.locate import find_model

    if name.endswith(".gguf") and os.path.isfile(name):
        raise ValueError(
            f"{name} is a GGUF file: `bitdistill import gguf {name} FOLDER` makes a model folder of it, which can be served."
        )
    repository, colon, file = name.rpartition(":")
    name = repository if colon and file.endswith(".gguf") else name
    model_id, at, revision = name.rpartition("@")
    if at and not os.path.exists(name):
        find_model(model_id, revision=revision)
    else:
        find_model(name)
