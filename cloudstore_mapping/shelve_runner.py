"""Run a program with `cloudstore_mapping.shelve` in place of the standard library's `shelve`."""

from __future__ import annotations

import importlib
import importlib.util
import linecache
import os
import pkgutil
import sys
from collections.abc import Callable
from importlib.machinery import BuiltinImporter, ModuleSpec, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, Final, NoReturn

from cloudstore_mapping.storefiles import read_file

_USAGE: Final = (
    "usage: python -m cloudstore_mapping.shelve (program.py | folder | zip file | -m module | -c code | -) [argument …]"
)
#: What follows each option that needs an argument.
_NEEDS: Final = {"-m": "a module", "-c": "code"}


def main(arguments: list[str]) -> None:
    """Run the program given by the arguments of the command line, as `python` runs it; its children are not changed."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"{_USAGE}\n")
        sys.exit(0 if arguments else 2)
    first, *others = arguments
    if first in _NEEDS and not others:
        _refuse(f"The option {first} needs {_NEEDS[first]} after it.")
    if first.startswith("-") and first != "-" and first not in _NEEDS:
        _refuse(f"There is no option {first}; write options of Python before -m cloudstore_mapping.shelve.")
    sys.modules["shelve"] = importlib.import_module("cloudstore_mapping.shelve")  # not as `__main__`
    if first == "-c":
        _run("", first, others[1:], lambda _: _argument_code(others[0]))
    elif first == "-":
        _run("", first, others, _stdin_code)
    elif first == "-m":
        _run(str(Path.cwd()), others[0], others[1:], lambda module: _module_code(others[0], module))
    else:
        path = os.path.join(Path.cwd(), first)  # noqa: PTH118 - Python keeps "./" in the path
        importer = pkgutil.get_importer(path)
        if importer is None:
            folder = str(Path(os.path.realpath(first)).parent)
            _run(folder, first, others, lambda module: _file_code(path, module))
        else:
            if sys.flags.safe_path:
                sys.path.insert(0, path)
            _run(path, first, others, lambda module: _folder_code(path, importer, module))


def _run(folder: str, name: str, arguments: list[str], code_of: Callable[[ModuleType], CodeType]) -> None:
    sys.argv = [name, *arguments]
    if not sys.flags.safe_path:
        sys.path[0] = folder
    module = ModuleType("__main__")
    vars(module).update(__builtins__=__builtins__, __annotations__={}, __loader__=BuiltinImporter)
    # It stays there until the very end, as the classes of pickles made then are found in it.
    sys.modules["__main__"] = module
    try:
        exec(code_of(module), vars(module))  # noqa: S102 - the user's program
    except SystemExit:
        raise
    except BaseException as error:
        _hide_frames(error)
        raise


def _file_code(file: str, module: ModuleType) -> CodeType:
    is_compiled = file.endswith(".pyc")
    loader = (SourcelessFileLoader if is_compiled else SourceFileLoader)("__main__", file)
    try:
        source = read_file(Path(file), pipe=True)
    except OSError as error:
        _end(2, f"can't open file {file!r}: [Errno {error.errno}] {error.strerror}")
    vars(module).update(__file__=file, __cached__=None, __loader__=loader)
    if is_compiled:
        return _code_of(loader, "__main__")
    return compile(source, file, "exec", dont_inherit=True)


def _argument_code(source: str) -> CodeType:
    """Return the code of the option `-c`, whose lines Python 3.13 shows in tracebacks."""
    if sys.version_info >= (3, 13):
        linecache.cache["<string>"] = (len(source), None, source.splitlines(keepends=True), "<string>")
    return compile(source, "<string>", "exec", dont_inherit=True)


def _stdin_code(module: ModuleType) -> CodeType:
    vars(module).update(__file__="<stdin>", __cached__=None)
    return compile(sys.stdin.buffer.read(), "<stdin>", "exec", dont_inherit=True)


def _folder_code(path: str, importer: Any, module: ModuleType) -> CodeType:
    """Return the code of `__main__` in a folder or zip file."""
    spec = importer.find_spec("__main__")
    if spec is None or spec.loader is None:
        _end(1, f"can't find '__main__' module in {path!r}")
    return _spec_code(spec, module)


def _module_code(name: str, module: ModuleType) -> CodeType:
    spec = _spec_of(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = _spec_of(f"{name}.__main__")
        if spec is None:
            _end(1, f"No module named {name}.__main__; {name!r} is a package and cannot be directly executed")
    if spec is None:
        _end(1, f"No module named {name}")
    sys.argv[0] = spec.origin or name
    return _spec_code(spec, module)


def _spec_of(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        advice = f". Try using '{name[:-3]}' instead of '{name}' as the module name." if name.endswith(".py") else ""
        _end(1, f"Error while finding module specification for {name!r} ({type(error).__name__}: {error}){advice}")


def _spec_code(spec: ModuleSpec, module: ModuleType) -> CodeType:
    vars(module).update(
        __file__=spec.origin,
        __cached__=spec.cached,
        __loader__=spec.loader,
        __package__=spec.parent,
        __spec__=spec,
    )
    return _code_of(spec.loader, spec.name)


def _code_of(loader: Any, name: str) -> CodeType:
    code: CodeType | None = loader.get_code(name) if hasattr(loader, "get_code") else None
    if code is None:
        _end(1, f"No code object available for {name}")
    return code


def _end(status: int, sentence: str) -> NoReturn:
    sys.stderr.write(f"{sys.executable}: {sentence}\n")
    sys.exit(status)


def _refuse(sentence: str) -> NoReturn:
    sys.stderr.write(f"{sentence}\n{_USAGE}\n")
    sys.exit(2)


def _hide_frames(error: BaseException) -> None:
    """Leave the frames of this module and of imports out of the traceback that Python prints for an error."""
    trace = error.__traceback__
    while trace is not None and (
        trace.tb_frame.f_globals.get("__name__") == __name__ or trace.tb_frame.f_code.co_filename.startswith("<frozen ")
    ):
        trace = trace.tb_next
    hook = sys.excepthook

    def show(kind: type[BaseException], value: BaseException, _: TracebackType | None) -> None:
        sys.excepthook = hook
        hook(kind, value.with_traceback(trace), trace)

    sys.excepthook = show
