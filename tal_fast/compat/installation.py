# SPDX-License-Identifier: Apache-2.0
"""What stands between ``install`` and ``uninstall``: the hook, the mends, and what undoes them."""

from __future__ import annotations

import atexit
import functools
import sys
import threading
from collections.abc import Callable, Iterable
from types import ModuleType

from tal_fast.compat.children import install_in_children
from tal_fast.compat.cpu_device import put_on_cpu
from tal_fast.compat.determinism import COMPILER, FUNCTION, Determinism
from tal_fast.compat.examine import Examiner
from tal_fast.compat.hook import Finder
from tal_fast.compat.mends import LIBRARIES
from tal_fast.compat.options import MODULES, Options
from tal_fast.compat.random_numbers import KERNEL, replace_bernoulli
from tal_fast.compat.reporting import Report
from tal_fast.errors import ConfigError

__all__ = ["current", "install", "installed", "report", "uninstall"]

Undo = Callable[[], None]

_lock = threading.RLock()


class Installation:
    """One installation; :func:`install` makes it."""

    def __init__(self, options: Options) -> None:
        """Prepares, and changes nothing."""
        self.options = options
        self.report = Report(options.report, quiet=options.quiet)
        self.examiner = Examiner(options, self.report)
        self.finder = Finder(options, self.report, self.examiner.examine, self._after())
        self._undos: list[Undo] = []

    def begin(self) -> None:
        """Puts the hook in place and looks at what is loaded already."""
        sys.meta_path.insert(0, self.finder)
        for name, action in self.finder.after.items():
            if name in sys.modules:
                action(sys.modules[name])
        for name, module in list(sys.modules.items()):
            last = name.rpartition(".")[2]
            ours = name.startswith("tal_fast.")
            if last in MODULES and isinstance(module, ModuleType) and not ours:
                file = getattr(module, "__file__", None)
                self.report.add("left", name, f"was imported before: {file}")
        self.examiner.examine_loaded()

    def end(self) -> None:
        """Takes everything back, last first."""
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        for undo in (*reversed(self.examiner.undos), *reversed(self._undos)):
            undo()
        for module in self.finder.provided:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]
            package, _, last = module.__name__.rpartition(".")
            if vars(sys.modules.get(package, module)).get(last) is module:
                delattr(sys.modules[package], last)

    def _after(self) -> dict[str, Callable[[ModuleType], None]]:
        """Library -> what is done with it once it was imported."""
        steps: dict[str, list[Callable[[ModuleType], Undo]]] = {}
        if self.options.device == "cpu":
            steps["torch"] = [put_on_cpu]
        # Behind it, for a mend looks at who calls.
        for library, (name, mend) in LIBRARIES.items():
            if self.options.mends(name):
                steps.setdefault(library, []).append(functools.partial(self._mended, mend))
        if self.options.wants(KERNEL, "torch") and self.options.verify:
            replace = functools.partial(self._mended, replace_bernoulli)
            steps.setdefault("torch", []).append(replace)
        if self.options.wants(FUNCTION, "torch"):
            determinism = Determinism()
            steps.setdefault("torch", []).append(determinism.wrap)
            steps.setdefault(COMPILER, []).append(determinism.set_flag)
        children = functools.partial(install_in_children, options=self.options)
        steps.setdefault("multiprocessing.spawn", []).append(children)
        return {name: functools.partial(self._act, own) for name, own in steps.items()}

    def _mended(self, mend: Callable[[ModuleType, Report], Undo], module: ModuleType) -> Undo:
        return mend(module, self.report)

    def _act(self, steps: list[Callable[[ModuleType], Undo]], module: ModuleType) -> None:
        for step in steps:
            self._undos.append(step(module))


_installation: Installation | None = None


def current() -> Installation:
    """Returns the installation that is in force.

    Raises:
        ConfigError: there is none.
    """
    if _installation is None:
        raise ConfigError("tal_fast.compat: expected an installation: call install() first")
    return _installation


def installed() -> bool:
    """Whether :func:`install` was called, and :func:`uninstall` was not."""
    return _installation is not None


def install(
    *,
    skip: Iterable[str] = (),
    only: Iterable[str] = (),
    mend: bool = True,
    verify: bool = True,
    nms: str = "literal",
    device: str | None = None,
    report: str | None = None,
    quiet: bool = False,
) -> Report:
    """Puts native ops behind the names that other codebases import or define, from now on.

    Modules that they compile are provided; functions that are known, in modules that are loaded or
    will be, are replaced once a proof has shown ours equal; pools of workers around those become
    loops; what old code misses in new libraries is given back to the user's files. The report says
    what was done, on standard error when the program ends.

    Args:
        skip: names that stay as they are: modules, functions (alone, or with their module in front:
            ``libs.utils.nms.batched_nms``), mends (``numpy``, ``pandas``, ``torch.load``,
            ``opentad``), ``pools``.
        only: the only modules and functions that become ours; empty: all.
        mend: False leaves all mends out.
        verify: False makes no proofs, so only modules are provided: nothing is replaced unproved.
        nms: ``"literal"``: the order of the originals under ties, bit for bit; ``"fused"``: one
            native call, equal scores by row.
        device: ``"cpu"`` maps ``.cuda()``, ``DataParallel`` and NCCL to the CPU; None: as it is.
        report: file for the report as JSON.
        quiet: print no report.

    Returns:
        The report; it grows as the program runs.

    Raises:
        ConfigError: an argument is wrong, or there is an installation with other ones.
    """
    global _installation
    options = Options.of(
        skip=skip,
        only=only,
        mend=mend,
        verify=verify,
        nms=nms,
        device=device,
        report=report,
        quiet=quiet,
    )
    with _lock:
        if _installation is not None:
            if _installation.options != options:
                raise ConfigError(
                    "tal_fast.compat: install() was called before with other arguments; "
                    "call uninstall() first"
                )
            return _installation.report
        _installation = Installation(options)
        try:
            _installation.begin()
        except BaseException:
            _installation.end()
            _installation = None
            raise
        atexit.register(_installation.report.finish)
        return _installation.report


def uninstall() -> Report | None:
    """Takes back what :func:`install` did; every name is again the object that it was.

    What was imported from a provided module stays with whoever holds it.

    Returns:
        The report so far, which is no longer printed at the end; None if nothing was installed.
    """
    global _installation
    with _lock:
        if _installation is None:
            return None
        before, _installation = _installation, None
        before.end()
        atexit.unregister(before.report.finish)
        return before.report


def report() -> Report:
    """Returns the report of the installation.

    Raises:
        ConfigError: there is none.
    """
    return current().report
