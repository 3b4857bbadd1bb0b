"""A Cog project with an input of every type, and functions with an output of every type."""

import atexit
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Annotated, Any, Dict, Iterator, List, Literal, NotRequired, Optional, TypedDict, Union

from cog import BaseModel, BaseRunner, ConcatenateIterator, File, Input, Opaque, Path, Secret

# Output, a thread and a process that must not disturb the reading of the project's schema.
atexit.register(print, "bye")
print("imported", flush=True)
if "describe_cog" in sys.argv[0]:
    subprocess.Popen(["sleep", "600"])
    threading.Thread(target=time.sleep, args=(600,)).start()


class Point(TypedDict):
    x: float
    label: NotRequired[str]
    note: Optional[str]


class Part(TypedDict, total=False):
    name: str


@dataclass
class Box:
    width: int
    depth: int = 3


class Report(BaseModel):
    text: str
    image: Path
    boxes: List[Box]
    sizes: dict[str, int]
    score: Optional[float]
    kind: str = "plain"


SHARED = Input(description="Made elsewhere", default=None)


class Runner(BaseRunner):
    def run(
        self,
        bare: str,
        bare_optional: Optional[str],
        either: Union[str, List[int]],
        either_or_none: Union[int, str, None],
        flag: bool,
        plain_default: int = 3,
        described_only: str = Input(description="Say something"),
        optional_described: Optional[int] = Input(description="A number"),
        optional_none: Optional[float] = Input(default=None),
        optional_list: Optional[List[str]] = None,
        none_of_no_optional: int = Input(default=None),
        shared: Optional[str] = SHARED,
        bounded: float = Input(default=0.5, ge=0, le=1),
        counted: int = Input(default=5, ge=1, le=10),
        long: str = Input(default="ab", min_length=1, max_length=3, regex="^[a-z]*$"),
        old: str = Input(default="", deprecated=True),
        chosen: str = Input(choices=["a", "b"]),
        chosen_number: int = Input(choices=[1, 2], default=2),
        literal: Literal["slow", "fast"] = "slow",
        file: Path = Input(description="A picture", accept="image/*", default=None),
        files: List[Path] = Input(default=[]),
        handle: Optional[File] = None,
        password: Secret = Input(description="A password", default=None),
        needed_password: Optional[Secret] = Input(),
        mapping: dict = Input(default={}),
        typed_mapping: Dict[str, int] = {"a": 1},
        mappings: List[Dict[str, Any]] = Input(default=[]),
        point: Optional[Point] = None,
        anything: Any = Input(default={}),
        opaque: Annotated[object, Opaque] = Input(default={}),
        opaques: Annotated[List[object], Opaque] = Input(default=[]),
        either_default: Union[bool, float, dict] = 1.5,
        infinite: float = Input(default=float("inf")),
        modelID: Annotated[str, "of a model"] = "x",  # noqa: N803 - that names keep their capitals is the point
    ) -> dict:
        return {
            "bare_optional": bare_optional,
            "optional": [optional_described, optional_none, optional_list, shared],
            "none_of_no_optional": none_of_no_optional,
            "either": [type(either).__name__, either],
            "infinite": str(infinite),
            "password": password is None,
        }


def text() -> str: ...
def number() -> float: ...
def path() -> Path: ...
def texts() -> List[str]: ...
def grid() -> list[list[int]]: ...
def anything() -> Any: ...
def mapping() -> dict: ...
def counts() -> Dict[str, List[int]]: ...
def mappings() -> List[dict]: ...
def point() -> Point: ...
def part() -> Part: ...
def points() -> List[Point]: ...
def report() -> Report: ...
def opaque() -> Annotated[object, Opaque]: ...
def opaques() -> Annotated[List[object], Opaque]: ...
def paths_one_by_one() -> Iterator[Path]: ...
def reports_one_by_one() -> Iterator[Box]: ...
def words() -> ConcatenateIterator[str]: ...


def untyped_output(a: str): ...
def maybe() -> Optional[str]: ...
def one_of() -> Union[str, int]: ...
def untyped(a) -> str: ...
def many(*a: str) -> str: ...
def unknown(a: threading.Thread) -> str: ...
def grid_in(a: List[List[int]]) -> str: ...
def file_or_text(a: Union[Path, str]) -> str: ...
def bounded_either(a: Union[int, str] = Input(ge=1)) -> str: ...
def accepting(a: str = Input(accept="image/*")) -> str: ...
