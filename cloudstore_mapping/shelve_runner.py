"""Run a program with `cloudstore_mapping.shelve` in place of the standard library's `shelve`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, Final, NoReturn

from cloudstore_mapping.storefiles import read_file

_USAGE: Final = "usage: python -m cloudstore_mapping.shelve (program.py | -m module | -c code) [argument …]"


def main(arguments: list[str]) -> None:
    """Run the program given by the arguments of the command line, as `python` runs it; its children are not changed."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"{_USAGE}\n")
        sys.exit(0 if arguments else 2)
    if arguments[0] in ("-m", "-c") and len(arguments) < 2:
        sys.exit(_USAGE)
    sys.modules["shelve"] = importlib.import_module("cloudstore_mapping.shelve")  # not as `__main__`
    if arguments[0] == "-c":
        _run("", "-c", arguments[2:], lambda _: compile(arguments[1], "<string>", "exec"))
    elif arguments[0] == "-m":
        _run(str(Path.cwd()), arguments[1], arguments[2:], lambda module: _module_code(arguments[1], module))
    else:
        folder = str(Path(os.path.realpath(arguments[0])).parent)
        _run(folder, arguments[0], arguments[1:], lambda module: _file_code(arguments[0], module))


def _run(folder: str, name: str, arguments: list[str], code_of: Callable[[ModuleType], CodeType]) -> None:
    sys.argv = [name, *arguments]
    if not sys.flags.safe_path:
        sys.path[0] = folder
    module = ModuleType("__main__")
    vars(module).update(__builtins__=__builtins__, __annotations__={})
    # It stays there until the very end, as the classes of pickles made then are found in it.
    sys.modules["__main__"] = module
    try:
        exec(code_of(module), vars(module))  # noqa: S102 - the user's program
    except SystemExit:
        raise
    except BaseException as error:
        _hide_frames(error)
        raise


def _file_code(path: str, module: ModuleType) -> CodeType:
    file = os.path.join(Path.cwd(), path)  # noqa: PTH118 - Python keeps "./" in the path
    try:
        source = read_file(file, pipe=True)
    except OSError as error:
        _end(2, f"can't open file {file!r}: [Errno {error.errno}] {error.strerror}")
    vars(module).update(__file__=file, __cached__=None, __loader__=SourceFileLoader("__main__", file))
    return compile(source, file, "exec", dont_inherit=True)


def _module_code(name: str, module: ModuleType) -> CodeType:
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    get_code: Any = getattr(spec and spec.loader, "get_code", None)
    if spec is None or get_code is None:
        _end(1, f"No module named {name}")
    sys.argv[0] = spec.origin or name
    vars(module).update(
        __file__=spec.origin,
        __cached__=spec.cached,
        __loader__=spec.loader,
        __package__=spec.parent,
        __spec__=spec,
    )
    code: CodeType = get_code(spec.name)
    return code


def _end(status: int, sentence: str) -> NoReturn:
    sys.stderr.write(f"{sys.executable}: {sentence}\n")
    sys.exit(status)


def _hide_frames(error: BaseException) -> None:
    """Leave this module's frames out of the traceback that Python prints for an error of the program."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") == __name__:
        trace = trace.tb_next
    hook = sys.excepthook

    def show(kind: type[BaseException], value: BaseException, _: TracebackType | None) -> None:
        sys.excepthook = hook
        hook(kind, value.with_traceback(trace), trace)

    sys.excepthook = show
