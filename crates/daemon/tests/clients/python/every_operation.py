"""Every operation of every service with grpcio, over TCP and over the local socket.

The stubs are generated from the published schema, as any client's are. Where the daemon is comes in the
environment: LIBRORUM_TCP, LIBRORUM_SOCKET, LIBRORUM_TOKEN, LIBRORUM_PROTO.
"""

import hashlib
import os
import pathlib
import sys
import tempfile
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_tools import protoc


def generate():
    proto = pathlib.Path(os.environ["LIBRORUM_PROTO"])
    out = tempfile.mkdtemp()
    files = [
        "file.proto", "node.proto", "log.proto",
        "librorum/v1/files.proto", "librorum/v1/admin.proto", "librorum/v1/frames.proto",
    ]
    arguments = ["protoc", f"-I{proto}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    assert protoc.main(arguments) == 0
    sys.path.insert(0, out)


generate()

import file_pb2, file_pb2_grpc, log_pb2, log_pb2_grpc, node_pb2, node_pb2_grpc  # noqa: E402,E401
from librorum.v1 import admin_pb2, admin_pb2_grpc, files_pb2, files_pb2_grpc  # noqa: E402

TOKEN = ("authorization", "Bearer " + os.environ["LIBRORUM_TOKEN"])
OPTIONS = [("grpc.max_receive_message_length", 16 << 20)]


class Token(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor,
            grpc.StreamUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Puts the token into every call."""

    def _call(self, continuation, details, request):
        metadata = list(details.metadata or []) + [TOKEN]
        return continuation(details._replace(metadata=metadata), request)

    intercept_unary_unary = intercept_unary_stream = _call
    intercept_stream_unary = intercept_stream_stream = _call


def fails(code, call, *arguments):
    try:
        answer = call(*arguments)
        if hasattr(answer, "__iter__"):
            list(answer)
    except grpc.RpcError as error:
        assert error.code() == code, (error.code(), error.details())
        return error
    raise AssertionError(f"{code} was expected")


def legacy_files(channel, base):
    stub = file_pb2_grpc.FileServiceStub(channel)
    made = stub.CreateDirectory(file_pb2.CreateDirectoryRequest(path=f"/{base}/deep", create_parents=True))
    assert made.success and made.directory_info.is_directory
    content = os.urandom(3 << 20)

    def upload(name, content, **more):
        yield file_pb2.UploadFileRequest(metadata=file_pb2.UploadFileMetadata(
            name=name, path=f"/{base}", size=len(content), **more))
        for at in range(0, len(content), 100_000):
            yield file_pb2.UploadFileRequest(chunk=content[at:at + 100_000])

    digest = hashlib.sha256(content).hexdigest()
    sent = stub.UploadFile(upload("a.mov", content, checksum=digest))
    assert sent.success and sent.bytes_uploaded == len(content), sent
    assert sent.file_info.path == f"/{base}/a.mov" and sent.file_info.mime_type == "video/quicktime"
    fails(grpc.StatusCode.ALREADY_EXISTS, stub.UploadFile, upload("a.mov", b"x"))
    fails(grpc.StatusCode.DATA_LOSS, stub.UploadFile, upload("b", b"x", checksum=digest))
    fails(grpc.StatusCode.UNIMPLEMENTED, stub.UploadFile, upload("b", b"x", encrypt=True))
    content = content[::-1]
    assert stub.UploadFile(upload("a.mov", content, overwrite=True)).success

    messages = list(stub.DownloadFile(file_pb2.DownloadFileRequest(path=f"/{base}/a.mov")))
    assert messages[0].WhichOneof("data") == "file_info"
    assert all(message.WhichOneof("data") == "chunk" for message in messages[1:])
    assert all(message.total_size == len(content) for message in messages)
    assert b"".join(message.chunk for message in messages) == content
    at = 0
    for message in messages[1:]:
        assert message.offset == at
        at += len(message.chunk)
    info = messages[0].file_info
    part = stub.DownloadFile(file_pb2.DownloadFileRequest(file_id=info.file_id, offset=10, length=20))
    assert b"".join(message.chunk for message in part) == content[10:30]

    listed = stub.ListFiles(file_pb2.ListFilesRequest(path=f"/{base}", recursive=True))
    assert sorted(found.path for found in listed.files) == [f"/{base}/a.mov", f"/{base}/deep"]
    assert listed.total_count == 2 and listed.total_size == len(content)

    until = time.monotonic() + 30
    while stub.GetSyncStatus(file_pb2.GetSyncStatusRequest()).overall_status != file_pb2.SYNC_STATUS_SYNCED:
        assert time.monotonic() < until
        time.sleep(0.1)
    info = stub.GetFileInfo(file_pb2.GetFileInfoRequest(path=f"/{base}/a.mov", include_chunks=True))
    assert info.sync_status == file_pb2.SYNC_STATUS_SYNCED
    assert info.chunk_count == len(info.chunk_ids) > 0
    assert info.permissions.mode == 0o644 and info.permissions.readable
    for path in ["../x", f"/{base}/../x", "a//b"]:
        fails(grpc.StatusCode.INVALID_ARGUMENT, stub.GetFileInfo, file_pb2.GetFileInfoRequest(path=path))
    gone = stub.DeleteFile(file_pb2.DeleteFileRequest(path=f"/{base}", recursive=True))
    assert gone.success and gone.deleted_count == 3, gone
    fails(grpc.StatusCode.NOT_FOUND, stub.GetFileInfo, file_pb2.GetFileInfoRequest(path=f"/{base}"))


def legacy_nodes(channel):
    stub = node_pb2_grpc.NodeServiceStub(channel)
    beat = stub.Heartbeat(node_pb2.HeartbeatRequest(node_id="python", timestamp=int(time.time())))
    assert beat.status and beat.node_id and "0.0.0.0" not in beat.address
    health = stub.GetSystemHealth(node_pb2.SystemHealthRequest())
    disk = os.statvfs(os.environ["LIBRORUM_SOCKET"])
    assert health.total_storage == disk.f_blocks * disk.f_frsize
    assert health.memory_usage > 0 and health.uptime_seconds >= 0
    assert abs(health.timestamp - time.time()) < 60
    added = stub.AddNode(node_pb2.AddNodeRequest(address="127.0.0.1:9"))
    assert added.success and added.node.address == "127.0.0.1:9"
    nodes = stub.GetNodeList(node_pb2.NodeListRequest(include_offline=True))
    assert any(node.address == "127.0.0.1:9" for node in nodes.nodes)
    assert nodes.total_count == nodes.online_count + nodes.offline_count
    assert stub.RemoveNode(node_pb2.RemoveNodeRequest(node_id="127.0.0.1:9")).success
    portal = stub.GetDataPortalEndpoint(node_pb2.DataPortalEndpointRequest())
    assert not portal.available and portal.protocol == "librorum.v1.Files"


def legacy_logs(channel):
    stub = log_pb2_grpc.LogServiceStub(channel)
    logs = stub.GetLogs(log_pb2.GetLogsRequest(level_filter="all"))
    assert logs.total_count >= len(logs.logs)
    assert stub.GetLogStats(log_pb2.GetLogStatsRequest()).total_logs >= 0
    for export_format in (log_pb2.EXPORT_FORMAT_JSON, log_pb2.EXPORT_FORMAT_CSV, log_pb2.EXPORT_FORMAT_PLAIN):
        exported = stub.ExportLogs(log_pb2.ExportLogsRequest(format=export_format))
        assert exported.success and exported.file_size == len(exported.data)
    list(stub.StreamLogs(log_pb2.StreamLogsRequest(level_filter="info", tail=5)))
    follow = stub.StreamLogs(log_pb2.StreamLogsRequest(follow=True), timeout=0.5)
    fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: follow)
    fails(grpc.StatusCode.INVALID_ARGUMENT, stub.GetLogs, log_pb2.GetLogsRequest(level_filter="loud"))
    assert stub.ClearLogs(log_pb2.ClearLogsRequest(clear_all=True)).success


def files(channel, base):
    stub = files_pb2_grpc.FilesStub(channel)
    base = base.encode()
    capabilities = stub.Capabilities(files_pb2.CapabilitiesRequest())
    assert len(capabilities.instance) == 16 and capabilities.volumes[0].name == "main"
    stub.MakeDirectory(files_pb2.MakeDirectoryRequest(path=base + b"/d", parents=True))
    stub.Put(files_pb2.PutRequest(path=base + b"/small", data=b"hello", mode=0o600))
    content = os.urandom(5 << 20)
    opened = stub.OpenWrite(files_pb2.OpenWriteRequest(path=base + b"/big", want=files_pb2.TRANSPORT_FD))
    assert opened.transport == files_pb2.TRANSPORT_GRPC and opened.demoted_because
    parts = (files_pb2.WriteRequest(upload=opened.upload, offset=at, data=content[at:at + 700_000])
             for at in range(0, len(content), 700_000))
    assert stub.Write(parts).written_bytes == len(content)
    made = stub.Commit(files_pb2.CommitRequest(upload=opened.upload, path=base + b"/big", len=len(content)))
    assert made.entry.size_bytes == len(content)
    messages = list(stub.Read(files_pb2.ReadRequest(path=base + b"/big")))
    assert messages[0].entry.size_bytes == len(content)
    assert b"".join(message.data for message in messages) == content
    assert all(len(message.data) >= 65536 for message in messages[:-1])
    part = stub.Read(files_pb2.ReadRequest(path=base + b"/big", offset=1000, length=3_000_000))
    assert b"".join(message.data for message in part) == content[1000:3_001_000]
    opened = stub.OpenWrite(files_pb2.OpenWriteRequest(path=base + b"/never"))
    stub.Abort(files_pb2.AbortRequest(upload=opened.upload))
    fails(grpc.StatusCode.NOT_FOUND, stub.Write, iter([files_pb2.WriteRequest(upload=opened.upload)]))
    stub.Copy(files_pb2.CopyRequest(**{"from": base + b"/big", "to": base + b"/copy"}))
    stub.Link(files_pb2.LinkRequest(**{"from": base + b"/big", "to": base + b"/link"}))
    stub.MakeSymlink(files_pb2.MakeSymlinkRequest(path=base + b"/symlink", target=b"big"))
    stub.Rename(files_pb2.RenameRequest(**{"from": base + b"/copy", "to": base + b"/d/moved"}))
    stub.SetAttributes(files_pb2.SetAttributesRequest(path=base + b"/small", mode=0o640))
    stub.Sync(files_pb2.SyncRequest(seal=True))
    stat = stub.Stat(files_pb2.StatRequest(path=base + b"/big", chunks=True))
    assert stat.entry.nlink == 2
    assert stub.Usage(files_pb2.UsageRequest(path=base)).file_count >= 4
    listed = stub.List(files_pb2.ListRequest(path=base, recursive=True))
    assert len(listed.entries) == 6, listed
    error = fails(grpc.StatusCode.NOT_FOUND, stub.Stat, files_pb2.StatRequest(path=base + b"/none"))
    details = dict(error.trailing_metadata())["librorum-error-bin"]
    assert files_pb2.Error.FromString(details).errno == 2
    removed = stub.Remove(files_pb2.RemoveRequest(path=base, recursive=True))
    assert removed.removed_count == 7 and not removed.errors, removed


def admin(channel):
    stub = admin_pb2_grpc.AdminStub(channel)
    assert stub.Status(admin_pb2.StatusRequest()).pid > 0
    assert any(found.operation == "READ" for found in stub.Stats(admin_pb2.StatsRequest()).operations)
    assert stub.Trace(admin_pb2.TraceRequest(limit=10)).operations
    stub.Logs(admin_pb2.LogsRequest(limit=10))
    assert stub.Nodes(admin_pb2.NodesRequest()).own_id
    # The daemon of the test has no configuration, and says so.
    fails(grpc.StatusCode.UNIMPLEMENTED, stub.Config, admin_pb2.ConfigRequest())
    fails(grpc.StatusCode.UNIMPLEMENTED, stub.Reload, admin_pb2.ReloadRequest())
    folder = tempfile.mkdtemp(dir=os.path.dirname(os.environ["LIBRORUM_SOCKET"])).encode()
    try:
        stub.Mount(admin_pb2.MountRequest(folder=folder + b"/none", mountpoint=folder))
        raise AssertionError("a volume that is not there was mounted")
    except grpc.RpcError as error:
        assert error.code() != grpc.StatusCode.INTERNAL, error
    try:
        stub.Unmount(admin_pb2.UnmountRequest(mountpoint=folder))
        raise AssertionError("what is not mounted was unmounted")
    except grpc.RpcError as error:
        assert error.code() != grpc.StatusCode.INTERNAL, error


def health_and_reflection(channel):
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(iter(reflection.ServerReflectionInfo(iter([asked]))))
    names = {service.name for service in answer.list_services_response.service}
    assert {"file.FileService", "librorum.v1.Files", "librorum.v1.Admin"} <= names, names


def everything(channel, base):
    legacy_files(channel, base)
    legacy_nodes(channel)
    legacy_logs(channel)
    files(channel, base)
    admin(channel)
    health_and_reflection(channel)


def main():
    with grpc.insecure_channel(os.environ["LIBRORUM_TCP"], OPTIONS) as plain:
        stub = file_pb2_grpc.FileServiceStub(plain)
        fails(grpc.StatusCode.UNAUTHENTICATED, stub.ListFiles, file_pb2.ListFilesRequest())
        everything(grpc.intercept_channel(plain, Token()), "tcp")
    # Without an authority grpcio sends the socket's path as one, which HTTP/2 does not allow.
    options = OPTIONS + [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel("unix:" + os.environ["LIBRORUM_SOCKET"], options) as local:
        everything(local, "uds")
        admin_pb2_grpc.AdminStub(local).Shutdown(admin_pb2.ShutdownRequest())
    print("grpcio", grpc.__version__, "did everything")


main()
