"""Messages between the agents of a cluster, and between an agent and the gateway.

A message is a length (4 bytes, big-endian) and that many bytes of msgpack: one tagged struct. A connection
carries one request at a time: a request, its reply, the next request. The content of a file follows its
message as plain bytes. After ``SocketOpened``, a connection carries only the bytes of the socket.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from appliance.machine import Device

#: Bytes. The largest message lists the files of the weights of one model.
MAX_MESSAGE: Final = 16 * 1024 * 1024
#: Bytes. Messages of clients that have not proved who they are.
MAX_UNAUTHENTICATED_MESSAGE: Final = 64 * 1024


class NodeFacts(msgspec.Struct, frozen=True):
    """What the head knows about a node."""

    name: str
    host: str  # IP address
    port: int  # of the agent
    devices: tuple[Device, ...]  # with local names, such as "cuda:0"
    threads: int  # CPU threads that models may use
    version: str  # of the appliance
    labels: dict[str, str]  # for people, such as the operating system
    run_dir: str  # folder with the sockets of the node's processes
    outputs: str  # folder for output files of predictions


class WeightFile(msgspec.Struct, frozen=True):
    """One file of the weights of a model."""

    name: str  # path relative to the folder of the weights, with "/"
    size: int
    sha256: str  # in hexadecimal digits


class WeightTree(msgspec.Struct, frozen=True):
    """The files below one path of a model's weights; a path may also be a single file."""

    name: str  # last part of the path, which the copy keeps
    files: tuple[WeightFile, ...]
    single: bool  # the path is a file, not a folder


class Source(msgspec.Struct, frozen=True):
    """An agent from which weights can be copied."""

    name: str
    host: str
    port: int


# -- requests of a machine that wants to join, to the head -------------------------------------------------


class AskAuthority(msgspec.Struct, frozen=True, tag="ask_authority"):
    """Ask for the certificate of the cluster's authority, to compare it with the join token."""

    challenge: bytes  # random


class Join(msgspec.Struct, frozen=True, tag="join"):
    """Ask for a certificate. ``secret`` is the secret of the join token."""

    secret: str
    name: str
    version: str
    device: str  # kind of the first device: "cpu" or "cuda"
    request: bytes  # certificate signing request in PEM


class JoinAsStandby(msgspec.Struct, frozen=True, tag="join_as_standby"):
    """Ask for a certificate with which a standby can send only ``OpenGateway``."""

    secret: str
    name: str
    version: str
    request: bytes  # certificate signing request in PEM


# -- requests of a node to the head -------------------------------------------------------------------------


class Announce(msgspec.Struct, frozen=True, tag="announce"):
    """Say that the node's processes run. From now on it is a member."""

    facts: NodeFacts
    incarnation: str  # differs each time that the node starts


class AskMembership(msgspec.Struct, frozen=True, tag="ask_membership"):
    """Ask whether the head still counts the node as a member."""

    incarnation: str


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """Ask the head to start nothing more on this node, because it is going to stop."""

    incarnation: str


class Left(msgspec.Struct, frozen=True, tag="left"):
    """Say that the node stops now."""

    incarnation: str


class ReadWeights(msgspec.Struct, frozen=True, tag="read_weights"):
    """Ask for a file of weights. Agents of the head and of nodes answer this to each member."""

    sha256: str
    offset: int  # bytes that the asking node has already


class OpenGateway(msgspec.Struct, frozen=True, tag="open_gateway"):
    """Let the gateway answer the HTTP requests of a client that has connected to this node or standby.

    After ``GatewayOpened``, the connection carries only the bytes between the client and the gateway.
    """

    client: tuple[str, int]  # IP address and port of the client
    server: tuple[str, int]  # IP address and port that the client has connected to
    scheme: Literal["http", "https"]  # of the client's connection to this machine


# -- requests of the gateway to a node ----------------------------------------------------------------------


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Ask whether the agent responds."""


class AskFacts(msgspec.Struct, frozen=True, tag="ask_facts"):
    """Ask for the facts of the node."""


class AskInUse(msgspec.Struct, frozen=True, tag="ask_in_use"):
    """Ask for the memory in use of each device."""


class PrepareModules(msgspec.Struct, frozen=True, tag="prepare_modules"):
    """Let the zygote import modules."""

    modules: list[str]


class OpenSocket(msgspec.Struct, frozen=True, tag="open_socket"):
    """Connect to a Unix socket in the folder ``run`` of the node."""

    name: str


class SendFile(msgspec.Struct, frozen=True, tag="send_file"):
    """Store a file for the input of a prediction. The content follows after ``Ok``, then ``Digest``."""

    name: str
    size: int
    prediction: str | None = None  # id; files without one are in a folder of their own


class FetchFile(msgspec.Struct, frozen=True, tag="fetch_file"):
    """Ask for the content of an input or output file."""

    path: str


class DropFiles(msgspec.Struct, frozen=True, tag="drop_files"):
    """Delete input and output files. Files that do not exist are no error."""

    paths: list[str]


class DropOthers(msgspec.Struct, frozen=True, tag="drop_others"):
    """Delete the input and output files of all predictions except these."""

    predictions: list[str]  # ids


class CopyWeights(msgspec.Struct, frozen=True, tag="copy_weights"):
    """Copy the files of ``trees`` that the node does not have. ``Copying`` messages precede the reply."""

    trees: list[WeightTree]
    sources: list[Source]  # in the order in which they are asked
    keep: list[str]  # paths of earlier copies that must not be deleted


class FindWeights(msgspec.Struct, frozen=True, tag="find_weights"):
    """Ask whether the node has a copy of all ``trees``."""

    trees: list[WeightTree]


# -- replies ------------------------------------------------------------------------------------------------


class Authority(msgspec.Struct, frozen=True, tag="authority"):
    """The certificate of the authority."""

    certificate: bytes  # PEM
    #: Shows that the head knows the secret, for join tokens without a fingerprint: ``identity.proof``.
    proof: bytes


class Admitted(msgspec.Struct, frozen=True, tag="admitted"):
    """All that a machine needs to become a node."""

    certificate: bytes  # PEM
    host: str  # IP address of the node, as the head sees it
    head: str  # name of the head
    ray_address: str
    ray_token: str
    modules: list[str]  # for the zygote
    lost_after: float  # seconds
    drain_timeout: float  # seconds
    worker_ports: tuple[int, int]  # first and last port for Ray's worker processes
    node_manager_port: int
    object_manager_port: int


class StandbyAdmitted(msgspec.Struct, frozen=True, tag="standby_admitted"):
    """The certificate of a standby."""

    certificate: bytes  # PEM


class Membership(msgspec.Struct, frozen=True, tag="membership"):
    """Whether the node is a member."""

    is_member: bool


class Ok(msgspec.Struct, frozen=True, tag="done"):
    """The request was carried out."""


class ErrorReply(msgspec.Struct, frozen=True, tag="failed"):
    """The request could not be carried out; the message has the reason."""

    message: str
    temporary: bool = False  # whether a later attempt may succeed, for example after a full disk


class Facts(msgspec.Struct, frozen=True, tag="facts"):
    """The facts of the node."""

    facts: NodeFacts


class InUse(msgspec.Struct, frozen=True, tag="in_use"):
    """The memory in use."""

    devices: dict[str, int]  # bytes by local device name


class SocketOpened(msgspec.Struct, frozen=True, tag="socket_opened"):
    """From now on, the connection carries only the bytes of the socket."""


class GatewayOpened(msgspec.Struct, frozen=True, tag="gateway_opened"):
    """From now on, the connection carries only the bytes between the client and the gateway."""


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """The file was stored at this absolute path."""

    path: str


class Content(msgspec.Struct, frozen=True, tag="content"):
    """The bytes of a file follow, then ``Digest``."""

    size: int


class Digest(msgspec.Struct, frozen=True, tag="digest"):
    """SHA-256 of the bytes before this message, in hexadecimal digits."""

    sha256: str


class Copying(msgspec.Struct, frozen=True, tag="copying"):
    """How far a copy of weights is."""

    copied: int  # bytes
    total: int  # bytes


class Copied(msgspec.Struct, frozen=True, tag="copied"):
    """The weights were copied."""

    paths: list[str]  # one for each tree
    copied: int  # bytes that the node did not have before
    deleted: list[str]  # paths of other copies that were deleted, because the disk was almost full


class WeightsFound(msgspec.Struct, frozen=True, tag="found"):
    """Whether the node has all files."""

    complete: bool


JoinRequest = AskAuthority | Join | JoinAsStandby
HeadRequest = JoinRequest | Announce | AskMembership | Leave | Left | ReadWeights | OpenGateway
NodeRequest = (
    Ping
    | AskFacts
    | AskInUse
    | PrepareModules
    | OpenSocket
    | SendFile
    | FetchFile
    | DropFiles
    | DropOthers
    | CopyWeights
    | FindWeights
    | ReadWeights
)
Reply = (
    Authority
    | Admitted
    | StandbyAdmitted
    | Membership
    | Ok
    | ErrorReply
    | Facts
    | InUse
    | SocketOpened
    | GatewayOpened
    | Stored
    | Content
    | Digest
    | Copying
    | Copied
    | WeightsFound
)
