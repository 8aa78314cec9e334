//! `librorum.v1`, with the stock client: the messages made by hand are the messages it expects.

use std::time::Duration;

use bytes::Bytes;
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Daemon, noise};

fn path(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Uploads by OpenWrite, Write and Commit.
async fn write(daemon: &Daemon, name: &str, content: &[u8], piece: usize) -> v1::Entry {
    let mut files = daemon.files().await;
    let open = v1::OpenWriteRequest {
        path: path(name),
        want: v1::Transport::Fd.into(),
        ..v1::OpenWriteRequest::default()
    };
    let opened = files.open_write(open).await.unwrap().into_inner();
    assert_eq!(opened.transport(), v1::Transport::Grpc);
    assert!(!opened.demoted_because.is_empty());
    let upload = opened.upload;
    let parts: Vec<v1::WriteRequest> = content
        .chunks(piece)
        .enumerate()
        .map(|(index, data)| v1::WriteRequest {
            upload,
            offset: (index * piece) as u64,
            data: Bytes::copy_from_slice(data),
        })
        // At any offset: backwards.
        .rev()
        .collect();
    let written = files.write(tokio_stream::iter(parts)).await.unwrap().into_inner();
    assert_eq!(written.written_bytes, content.len() as u64);
    let commit = v1::CommitRequest {
        upload,
        path: path(name),
        len: content.len() as u64,
        durable: true,
        blake3: Bytes::copy_from_slice(blake3::hash(content).as_bytes()),
        ..v1::CommitRequest::default()
    };
    files.commit(commit).await.unwrap().into_inner().entry.unwrap()
}

async fn read(daemon: &Daemon, name: &str, offset: u64, length: u64) -> (v1::Entry, Vec<u8>) {
    let request =
        v1::ReadRequest { path: path(name), offset, length, ..v1::ReadRequest::default() };
    let mut stream = daemon.files().await.read(request).await.unwrap().into_inner();
    let mut entry = None;
    let mut content = Vec::new();
    let mut lengths = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        assert_eq!(message.entry.is_some(), entry.is_none(), "the entry is in the first message");
        entry = entry.or(message.entry);
        assert_eq!(
            message.offset,
            offset.min(entry.as_ref().unwrap().size_bytes) + content.len() as u64
        );
        lengths.push(message.data.len());
        content.extend_from_slice(&message.data);
    }
    if let Some((_last, others)) = lengths.split_last() {
        assert!(others.iter().all(|&len| len >= 64 << 10), "{lengths:?}");
    }
    (entry.unwrap(), content)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_back_as_they_went() {
    let daemon = Daemon::start();
    for len in [0, 1, 4096, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 9_999_999] {
        let content = noise(len, 1);
        let name = format!("f{len}");
        let entry = write(&daemon, &name, &content, 300_000).await;
        assert_eq!(entry.size_bytes, len as u64);
        let (entry, found) = read(&daemon, &name, 0, 0).await;
        assert!(found == content && entry.size_bytes == len as u64, "{len}");
    }
    let content = noise(9_999_999, 1);
    let (_, part) = read(&daemon, "f9999999", 1_234_567, 5_000_000).await;
    assert!(part == content[1_234_567..6_234_567]);
    let (_, behind) = read(&daemon, "f9999999", 10_000_000, 5).await;
    assert!(behind.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_small_operation_works() {
    let daemon = Daemon::start();
    let mut files = daemon.files().await;
    let seen = files.capabilities(v1::CapabilitiesRequest {}).await.unwrap().into_inner();
    assert_eq!(&seen.instance[..], daemon.service.instance());
    let put = |name: &str, data: &'static [u8]| v1::PutRequest {
        path: path(name),
        mode: 0o640,
        data: Bytes::from_static(data),
        ..v1::PutRequest::default()
    };
    files
        .make_directory(v1::MakeDirectoryRequest {
            path: path("d/e"),
            parents: true,
            ..Default::default()
        })
        .await
        .unwrap();
    let entry = files.put(put("d/f", b"hello")).await.unwrap().into_inner().entry.unwrap();
    assert_eq!((entry.size_bytes, entry.mode), (5, 0o640));
    files
        .copy(v1::CopyRequest { from: path("d/f"), to: path("d/g"), ..Default::default() })
        .await
        .unwrap();
    files
        .link(v1::LinkRequest { from: path("d/f"), to: path("d/h"), ..Default::default() })
        .await
        .unwrap();
    files
        .make_symlink(v1::MakeSymlinkRequest {
            path: path("d/s"),
            target: path("f"),
            ..Default::default()
        })
        .await
        .unwrap();
    files
        .rename(v1::RenameRequest { from: path("d/g"), to: path("d/e/g"), ..Default::default() })
        .await
        .unwrap();
    let changed =
        v1::SetAttributesRequest { path: path("d/f"), mode: Some(0o600), ..Default::default() };
    files.set_attributes(changed).await.unwrap();
    let stat = files
        .stat(v1::StatRequest { path: path("d/h"), ..Default::default() })
        .await
        .unwrap()
        .into_inner()
        .entry
        .unwrap();
    assert_eq!((stat.mode, stat.nlink, stat.ino), (0o600, 2, entry.ino));
    let listed = files
        .list(v1::ListRequest { path: path("d"), recursive: true, ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.entries.len(), 5);
    let usage = files
        .usage(v1::UsageRequest { path: path("d"), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    assert!(usage.file_count >= 2 && usage.logical_bytes >= 10);
    files.sync(v1::SyncRequest { seal: true, ..Default::default() }).await.unwrap();
    let removed = files
        .remove(v1::RemoveRequest { path: path("d"), recursive: true, ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((removed.removed_count, removed.errors.len()), (6, 0));

    let mut admin = v1::admin_client::AdminClient::new(daemon.uds().await);
    assert_eq!(
        admin.status(v1::StatusRequest::default()).await.unwrap().into_inner().pid,
        std::process::id()
    );
    let stats = admin.stats(v1::StatsRequest {}).await.unwrap().into_inner();
    let of = |name: &str| stats.operations.iter().find(|found| found.operation == name).cloned();
    assert_eq!(of("PUT").unwrap().transport, "grpc-uds");
    assert_eq!(of("PUT").unwrap().count, 1);
    let trace = admin.trace(v1::TraceRequest::default()).await.unwrap().into_inner();
    assert!(
        trace
            .operations
            .iter()
            .any(|operation| operation.operation == "PUT" && &operation.path[..] == b"d/f")
    );
    admin.logs(v1::LogsRequest { wait_ms: 10, ..Default::default() }).await.unwrap();
    admin.nodes(v1::NodesRequest::default()).await.unwrap();
    let unmount = v1::UnmountRequest { mountpoint: path("/none") };
    assert!(admin.unmount(unmount).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_keeps_its_meaning() {
    let daemon = Daemon::start();
    let mut files = daemon.files().await;
    let missing = v1::StatRequest { path: path("missing"), ..Default::default() };
    let status = files.stat(missing).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let failure = Failure::from(&status);
    assert_eq!(failure.errno(), Some(2));
    let read = v1::ReadRequest { path: path("missing"), ..Default::default() };
    assert_eq!(Failure::from(&files.read(read).await.unwrap_err()).errno(), Some(2));
    let part = v1::WriteRequest { upload: 12345, ..Default::default() };
    let status = files.write(tokio_stream::iter([part])).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_closed_with_their_connection_and_kept_by_their_key() {
    let daemon = Daemon::start();
    let open = |key: &'static [u8]| v1::OpenWriteRequest {
        path: path("f"),
        key: Bytes::from_static(key),
        ..v1::OpenWriteRequest::default()
    };
    let mut files = daemon.files().await;
    files.open_write(open(b"")).await.unwrap();
    files.open_write(open(b"0123456789abcdef")).await.unwrap();
    assert_eq!(daemon.service.upload_count(), 2);
    drop(files);
    let until = std::time::Instant::now() + Duration::from_secs(5);
    while daemon.service.upload_count() != 0 {
        assert!(std::time::Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // No descriptor is held for it, but it is found again.
    assert_eq!(daemon.fs.outside_counts().unwrap().waiting_upload_count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_has_passed_is_said_so() {
    let daemon = Daemon::start();
    let mut files = daemon.files().await;
    let opened = files
        .open_write(v1::OpenWriteRequest { path: path("f"), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    // A stream that never ends: the server must end it. The header alone, without the client's own clock.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(v1::WriteRequest { upload: opened.upload, ..Default::default() }).await.unwrap();
    let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    request.metadata_mut().insert("grpc-timeout", "300m".parse().unwrap());
    let status = tokio::time::timeout(Duration::from_secs(10), files.write(request))
        .await
        .unwrap()
        .unwrap_err();
    let failure = Failure::from(&status);
    assert!(
        failure.reason == Reason::DeadlineExceeded || status.code() == Code::Cancelled,
        "{status:?}"
    );
    drop(sender);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_that_of_the_volumes() {
    let daemon = Daemon::start();
    let mut health = HealthClient::new(daemon.uds().await);
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", "librorum.v1.Files", "file.FileService"] {
        assert_eq!(health.check(ask(service)).await.unwrap().into_inner().status, 1);
    }
    assert_eq!(health.check(ask("nobody")).await.unwrap_err().code(), Code::NotFound);
    let mut watch = health.watch(ask("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
    let volume = daemon.service.remove_volume("main").unwrap();
    assert_eq!(health.check(ask("")).await.unwrap().into_inner().status, 2);
    assert_eq!(watch.message().await.unwrap().unwrap().status, 2);
    drop(volume);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_can_be_asked_for() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let daemon = Daemon::start();
    let mut client = ServerReflectionClient::new(daemon.uds().await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
    for name in [
        "librorum.v1.Files",
        "librorum.v1.Admin",
        "file.FileService",
        "node.NodeService",
        "log.LogService",
        "grpc.health.v1.Health",
    ] {
        assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
    }
}
