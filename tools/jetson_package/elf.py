"""Shared libraries and programs as files: what they need of the system that loads them, and whether a target has it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.jetson_package.targets import Target, Version
from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error
from trt_hspan.machine.install_advice import install_command

_MACHINES: Final = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}

#: Versions without a number, by the release that brought them.
_NAMED_VERSIONS: Final = {
    "GLIBC_ABI_DT_RELR": ("GLIBC", (2, 36)),
    "GLIBC_ABI_DT_X86_64_PLT": ("GLIBC", (2, 39)),
}


@dataclass(frozen=True, kw_only=True)
class ElfNeeds:
    """What a file says of itself.

    Attributes:
        path: the file.
        machine: its processor: "x86_64" or "aarch64", or as ELF names it.
        libraries: those the loader must find for it.
        versions: symbol versions it asks of them, by library: {"libc.so.6": ("GLIBC_2.17", ...)}.
        undefined: symbols it takes from outside, ascending.
        exported: symbols that others can take from it, ascending.
    """

    path: Path
    machine: str
    libraries: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]
    undefined: tuple[str, ...]
    exported: tuple[str, ...]

    def newest(self, family: str) -> Version | None:
        """The newest version required of a family such as "GLIBC"; None when none is."""
        numbers = [number for name, number in map(version_from_symbol, self._names()) if name == family]
        return max(numbers, default=None)

    def _names(self) -> list[str]:
        return [name for names in self.versions.values() for name in names]


def elf_needs_from_file(path: str | os.PathLike[str]) -> ElfNeeds:
    """Reads a shared library or program.

    Raises:
        HspanError: the file cannot be read, is no ELF file, is damaged, or is not dynamically linked; or pyelftools is
            not installed.
    """
    try:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile
    except ModuleNotFoundError as error:
        raise HspanError("pyelftools", "is not installed", install_command("jetson-build")) from error

    file = Path(path)
    try:
        with file.open("rb") as stream:
            elf = ELFFile(stream)
            dynamic: Any = elf.get_section_by_name(".dynamic")
            if dynamic is None:
                raise HspanError(file, "is not dynamically linked", "name a shared library or a program")
            symbols = _symbols(elf.get_section_by_name(".dynsym"))
            return ElfNeeds(
                path=file,
                machine=_MACHINES.get(elf.header["e_machine"], str(elf.header["e_machine"])),
                libraries=tuple(tag.needed for tag in dynamic.iter_tags("DT_NEEDED")),
                versions=_versions(elf.get_section_by_name(".gnu.version_r")),
                undefined=tuple(sorted(name for name, is_defined in symbols if not is_defined)),
                exported=tuple(sorted(name for name, is_defined in symbols if is_defined)),
            )
    except OSError as error:
        raise error_from_os_error(file, error, action="read") from error
    except (ELFError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise HspanError(file, "is no ELF file, or a damaged one", "build it again") from error


def version_from_symbol(name: str) -> tuple[str, Version]:
    """("GLIBC", (2, 34)) from "GLIBC_2.34". A version without numbers of such a family is newer than all numbers."""
    if name in _NAMED_VERSIONS:
        return _NAMED_VERSIONS[name]
    if match := re.fullmatch(r"(\w+?)_(\d+(?:\.\d+)*)", name):
        return match[1], tuple(map(int, match[2].split(".")))
    return name.split("_", maxsplit=1)[0], (1 << 30,)


def check_runs_on(needs: ElfNeeds, target: Target) -> None:
    """Refuses a file that the target's loader would refuse.

    Raises:
        HspanError: another processor, a library that the target does not have, or a symbol version that is newer than
            the target's: the file was built too new.
    """
    if needs.machine != target.machine:
        raise HspanError(
            needs.path,
            f"is for {needs.machine}, {target.name} is {target.machine}",
            "build it for the target",
        )
    if foreign := [name for name in needs.libraries if name not in target.libraries]:
        raise HspanError(needs.path, f"loads {foreign[0]}, which {target.system} does not have", None)
    for library, names in needs.versions.items():
        for name in names:
            family, version = version_from_symbol(name)
            limit = target.limits.get(family)
            if limit is not None and version > limit:
                has = f"{target.system} has {family} {'.'.join(map(str, limit))}"
                raise HspanError(
                    needs.path,
                    f"built too new for {target.name}: it needs {name} of {library}, {has}",
                    "build it with the libraries of an older system",
                )


def _symbols(section: Any) -> list[tuple[str, bool]]:
    """Names of global symbols, and whether they are defined here."""
    if section is None:
        return []
    return [
        (symbol.name, symbol["st_shndx"] != "SHN_UNDEF")
        for symbol in section.iter_symbols()
        if symbol.name and symbol["st_info"]["bind"] in {"STB_GLOBAL", "STB_WEAK", "STB_LOOS"}
    ]


def _versions(section: Any) -> dict[str, tuple[str, ...]]:
    if section is None:
        return {}
    return {
        need.name: tuple(sorted((each.name for each in entries), key=version_from_symbol))
        for need, entries in section.iter_versions()
    }
