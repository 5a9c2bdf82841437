"""A disk that remembers what was synced: it replays a trace of system calls, and loses the rest.

The model. A file keeps its bytes as of its last fsync, a folder keeps its names as of its last
fsync; fsync of a file says nothing about its name. What came later may be lost or not:

- bytes written since: lost with the file's new size; or the size is there and the bytes are zeros;
- names made, removed or changed since: the first few of them last, as in a journal. A rename
  within a folder lasts as a whole or not at all. Other folders may keep more of theirs, or less.
"""

import codecs
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

CALLS = (
    "openat,open,creat,close,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,lseek,fsync,"
    "fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,"
    "symlinkat,dup,dup2,dup3,fcntl,mmap,sendfile,copy_file_range,fallocate,sync_file_range"
)
"""What strace shall record. `Disk` refuses those that change its files in a way unknown to it."""

Way = Literal["lost", "names", "zeros", "random"]
WAYS: tuple[Way, ...] = ("lost", "names", "zeros", "random")
"""What lasts of what was not synced: nothing; the names alone; names and sizes; any of these."""


@dataclass
class File:
    """A file's bytes now, and on the disk for sure."""

    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    clean: int = 0  # so many bytes at the beginning have not been written since the last fsync
    cut: bool = False  # whether it was truncated since

    def write(self, data: bytes, at: int) -> None:
        self.data.extend(bytes(max(0, at - len(self.data))))
        self.data[at : at + len(data)] = data
        self.clean = min(self.clean, at)

    def truncate(self, size: int) -> None:
        self.cut = self.cut or size < len(self.synced)
        self.data[:] = self.data[:size].ljust(size, b"\0")
        self.clean = min(self.clean, size)

    def left(self, way: Way) -> bytes:
        """The bytes after a power cut."""
        if way == "lost":
            return self.synced
        if way == "names":
            return bytes(self.data[: self.clean]) if self.cut else self.synced
        return bytes(self.data[: self.clean]).ljust(len(self.data), b"\0")


@dataclass
class Opened:
    """A file that is open, perhaps by several descriptors, and where the next bytes go."""

    file: File
    place: int | None = 0  # None: at the end


@dataclass
class Folder:
    """A folder's names now, and on the disk for sure."""

    names: dict[str, "File | Folder"] = field(default_factory=dict)
    synced: dict[str, "File | Folder"] = field(default_factory=dict)
    later: list[dict[str, "File | Folder | None"]] = field(default_factory=list)  # since, in order

    def change(self, new: "dict[str, File | Folder | None]") -> None:
        """Gives names to files and folders, or takes names away (None), at once."""
        self.later.append(new)
        _apply(self.names, new)

    def left(self, count: int) -> dict[str, "File | Folder"]:
        """The names after a power cut, if `count` of the changes since the last fsync last."""
        names = dict(self.synced)
        for new in self.later[:count]:
            _apply(names, new)
        return names


def _apply(names: dict[str, File | Folder], new: dict[str, File | Folder | None]) -> None:
    for name, node in new.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


Mark = bytes | int | None
"""What a file or a folder holds when its fsync begins: only this is sure to be synced then."""


class Call(NamedTuple):
    """A system call that succeeded."""

    name: str
    text: str  # its arguments, as strace prints them
    result: int


class Disk:
    """What lies under the folder `root`, which was empty and synced at first."""

    def __init__(self, root: str) -> None:
        self.root, self.top = PurePosixPath(root), Folder()
        self._open: dict[int, Opened] = {}  # by descriptor

    # --- what happens -----------------------------------------------------------------------

    def do(self, call: Call, mark: Mark) -> bool:
        """Whether `call` changed something under `root`, or synced it: then what `mark` gave."""
        if call.name in ("open", "openat", "creat"):
            return self._do_open(call)
        if call.name in ("fsync", "fdatasync"):
            return self._do_sync(call, mark)
        if re.match(r"\d+[<,)]", call.text) and call.name not in ("mmap", "sendfile", "unlinkat"):
            return self._do_descriptor(call)
        return self._do_names(call)

    def mark(self, text: str) -> Mark:
        """What an fsync with these arguments that begins now will have synced when it ends."""
        node = self._node(text)
        if isinstance(node, Folder):
            return len(node.later)
        return None if node is None else bytes(node.data)

    def _do_names(self, call: Call) -> bool:
        path = self._inside(_at(call.text)) if '"' in call.text else None
        if call.name in ("mkdir", "unlink", "unlinkat", "rmdir"):
            if path is None or not path.parts:  # `root` itself was there before
                return False
            made = Folder() if call.name == "mkdir" else None
            self._folder(path.parent).change({path.name: made})
            return True
        if call.name == "rename" and path is not None:
            new = self._inside(_paths(call.text)[1])
            if new is not None and path.parent == new.parent:
                folder = self._folder(path.parent)
                folder.change({new.name: folder.names[path.name], path.name: None})
                return True
        reads = call.name == "mmap" and not {"MAP_SHARED", "PROT_WRITE"} <= set(
            re.findall(r"\w+", call.text)
        )
        if str(self.root) in call.text and not reads:
            raise NotImplementedError(f"{call.name}({call.text[:200]}")
        return False

    def _do_open(self, call: Call) -> bool:
        path = self._inside(_at(call.text))
        if path is None:
            return False
        node = self._find(path)
        changed = node is None
        if node is None:
            node = File()
            self._folder(path.parent).change({path.name: node})
        if isinstance(node, File):
            if "O_TRUNC" in call.text or call.name == "creat":
                changed = changed or bool(node.data)
                node.truncate(0)
            self._open[call.result] = Opened(node, None if "O_APPEND" in call.text else 0)
        else:
            self._open.pop(call.result, None)
        return changed

    def _do_descriptor(self, call: Call) -> bool:
        number = int(re.match(r"\d+", call.text)[0])
        opened = self._open.get(number)
        if call.name == "close":
            self._open.pop(number, None)
        elif call.name == "dup" or "F_DUPFD" in call.text:
            self._open.pop(call.result, None)
            if opened:
                self._open[call.result] = opened
        elif call.name == "lseek" and opened and opened.place is not None:
            opened.place = call.result
        elif call.name == "ftruncate" and opened:
            size = int(call.text.rpartition(",")[2])
            if size != len(opened.file.data):
                opened.file.truncate(size)
                return True
        elif call.name in ("write", "writev", "pwrite64") and opened:
            self._write(opened, call)
            return True
        elif call.name not in ("lseek", "fcntl") and self._node(call.text) is not None:
            raise NotImplementedError(f"{call.name}({call.text[:200]}")
        return False

    def _write(self, opened: Opened, call: Call) -> None:
        data = b"".join(_strings(call.text))[: call.result]
        if call.name == "pwrite64":
            opened.file.write(data, int(call.text.rpartition(",")[2]))
            return
        opened.file.write(data, len(opened.file.data) if opened.place is None else opened.place)
        if opened.place is not None:
            opened.place += len(data)

    def _do_sync(self, call: Call, mark: Mark) -> bool:
        node = self._node(call.text)
        if isinstance(node, File) and isinstance(mark, bytes):
            node.synced, same = mark, bytes(node.data) == mark
            node.clean, node.cut = (len(mark), False) if same else (0, node.cut)
        elif isinstance(node, Folder) and isinstance(mark, int):
            node.synced = node.left(mark)
            del node.later[:mark]
        return node is not None

    def _node(self, text: str) -> File | Folder | None:
        """What the descriptor that begins `text`, as '7</a/b>', is open for."""
        number, path = re.match(r"(\d+)<(.*?)>", text).groups()
        if int(number) in self._open:
            return self._open[int(number)].file
        inside = self._inside(path)
        return None if inside is None else self._find(inside)

    def _inside(self, path: str) -> PurePosixPath | None:
        try:
            return PurePosixPath(path).relative_to(self.root)
        except ValueError:
            return None

    def _find(self, path: PurePosixPath) -> File | Folder | None:
        node: File | Folder | None = self.top
        for part in path.parts:
            node = node.names.get(part) if isinstance(node, Folder) else None
        return node

    def _folder(self, path: PurePosixPath) -> Folder:
        folder = self._find(path)
        assert isinstance(folder, Folder), path
        return folder

    # --- the power cut ----------------------------------------------------------------------

    def left(self, way: Way, seed: int = 0) -> dict[str, bytes | None]:
        """What is on the disk after a power cut: the bytes of files, None for folders, by path."""
        rng = random.Random(seed)
        left: dict[str, bytes | None] = {}

        def walk(folder: Folder, path: PurePosixPath) -> None:
            pending = len(folder.later)
            count = {"lost": 0, "random": rng.randint(0, pending)}.get(way, pending)
            for name, node in sorted(folder.left(count).items()):
                if isinstance(node, Folder):
                    left[str(path / name)] = None
                    walk(node, path / name)
                else:
                    bytes_way = rng.choice(WAYS[:3]) if way == "random" else way
                    left[str(path / name)] = node.left(bytes_way)

        walk(self.top, PurePosixPath())
        return left


def write_files(files: dict[str, bytes | None], root: Path) -> None:
    """Makes these files and folders under `root`."""
    root.mkdir()
    for name, data in files.items():
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)


# --- the trace ----------------------------------------------------------------------------------

_LINE = re.compile(r"(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))", re.DOTALL)
_RESULT = re.compile(r"\) += (-?\d+)[^()\"]*(?:\([^\"]*\))?$")
_STRING = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_UNFINISHED = " <unfinished ...>"


def replay(lines: Iterable[str], disk: Disk, at: Callable[[int, Call], None]) -> int:
    """Replays the lines of a strace (-f -y -s 1000000000) of one process and its threads.

    Calls at(n, call) after the n-th call that changed or synced something. Returns how many.
    """
    begun: dict[str, tuple[str, str, Mark]] = {}  # by thread: the call's name, its arguments
    count = 0
    for line in lines:
        found = _LINE.match(line.rstrip("\n"))
        if not found:
            continue
        thread, name, text, resumed, end = found.groups()
        mark: Mark = None
        if resumed:
            name, text, mark = begun.pop(thread)
            text += end
        elif name in ("fsync", "fdatasync"):
            mark = disk.mark(text)
        if name and text.endswith(_UNFINISHED):
            begun[thread] = (name, text.removesuffix(_UNFINISHED), mark)
            if name == "close":  # another thread may get the number before this call returns
                disk.do(Call(name, text, 0), None)
            continue
        result = _RESULT.search(text, max(0, len(text) - 4096))
        if result and int(result[1]) >= 0 and not (name == "close" and resumed):
            call = Call(name, text[: result.start()], int(result[1]))
            if disk.do(call, mark):
                count += 1
                at(count, call)
    return count


def _strings(text: str) -> Iterator[bytes]:
    for found in _STRING.finditer(text):
        yield codecs.escape_decode(found[1].encode("latin-1"))[0]


def _paths(text: str) -> list[str]:
    return [one.decode() for one in _strings(text)]


def _at(text: str) -> str:
    """The path of open or openat, whose folder may be given by a descriptor."""
    (path, *_) = _paths(text)
    folder = re.match(r"[\w-]+<(.*?)>, ", text)
    return str(PurePosixPath(folder[1], path)) if folder else path
