//! The services of the first Librorum, and the mistakes that it made.

use std::time::Duration;

use librorum_rpc::proto::{file, log, node, v1};
use tonic::Code;

use crate::harness::{Daemon, by_path, download, named, noise, upload, upload_messages};

async fn info(daemon: &Daemon, path: &str) -> file::FileInfo {
    let request = file::GetFileInfoRequest {
        path: path.to_owned(),
        include_chunks: true,
        ..file::GetFileInfoRequest::default()
    };
    daemon.legacy().await.get_file_info(request).await.unwrap().into_inner()
}

async fn names(daemon: &Daemon, path: &str) -> Vec<String> {
    let request =
        file::ListFilesRequest { path: path.to_owned(), recursive: true, include_hidden: true };
    let listed = daemon.legacy().await.list_files(request).await.unwrap().into_inner();
    let mut names: Vec<String> = listed.files.into_iter().map(|file| file.path).collect();
    names.sort();
    names
}

async fn code<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Code {
    match call.await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uploaded_file_comes_back_with_the_truth_about_it() {
    let daemon = Daemon::start();
    let content = noise(5 << 20, 1);
    let metadata = file::UploadFileMetadata {
        size: 5 << 20,
        checksum: blake3::hash(&content).to_string(),
        ..named("/", "a.png")
    };
    let sent = upload(&daemon, metadata, &content).await.unwrap();
    assert!(sent.success && sent.bytes_uploaded == 5 << 20);
    let told = sent.file_info.unwrap();
    assert_eq!((told.name.as_str(), told.path.as_str()), ("a.png", "/a.png"));
    assert_eq!(told.checksum, blake3::hash(&content).to_string());
    assert_eq!(told.mime_type, "image/png");

    let (first, found) = download(&daemon, by_path("/a.png")).await.unwrap();
    assert!(found == content);
    assert_eq!(first.file_id, told.file_id);

    let sealed = tokio::task::spawn_blocking({
        let fs = daemon.fs.clone();
        move || {
            std::thread::sleep(Duration::from_millis(200));
            fs.seal_all();
        }
    });
    sealed.await.unwrap();
    let info = info(&daemon, "a.png").await;
    assert_eq!(info.sync_status(), file::SyncStatus::Synced);
    assert!(info.chunk_count >= 1 && info.chunk_count as usize == info.chunk_ids.len());
    assert!(!info.is_encrypted && info.replication_factor == 1);

    // The ids are the chunks' real ones.
    let stat = v1::StatRequest {
        path: b"a.png".to_vec().into(),
        chunks: true,
        ..v1::StatRequest::default()
    };
    let chunks = daemon.files().await.stat(stat).await.unwrap().into_inner().chunks;
    let mut at = 0;
    for (chunk, told) in chunks.iter().zip(&info.chunk_ids) {
        let end = at + chunk.len as usize;
        assert_eq!(*told, blake3::hash(&content[at..end]).to_string());
        at = end;
    }
    assert_eq!(at, content.len());

    // By number, also after a rename; and a part of it.
    let rename = v1::RenameRequest {
        from: b"a.png".to_vec().into(),
        to: b"b".to_vec().into(),
        ..v1::RenameRequest::default()
    };
    daemon.files().await.rename(rename).await.unwrap();
    let request = file::DownloadFileRequest {
        file_id: told.file_id,
        offset: 1_000_000,
        length: 2_500_000,
        ..file::DownloadFileRequest::default()
    };
    let (moved, part) = download(&daemon, request).await.unwrap();
    assert_eq!(moved.path, "/b");
    assert!(part == content[1_000_000..3_500_000]);
}

/// Success was reported after a write that had failed.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_arrive_whole_is_no_file() {
    let daemon = Daemon::start();
    let content = noise(300_000, 2);
    let wrong = [
        file::UploadFileMetadata { size: 299_999, ..named("/", "f") },
        file::UploadFileMetadata { size: 300_001, ..named("/", "f") },
        file::UploadFileMetadata { size: -1, ..named("/", "f") },
        file::UploadFileMetadata { checksum: "00".repeat(32), ..named("/", "f") },
        file::UploadFileMetadata {
            checksum: "d41d8cd98f00b204e9800998ecf8427e".into(),
            ..named("/", "f")
        },
        file::UploadFileMetadata { encrypt: true, ..named("/", "f") },
        file::UploadFileMetadata { compress: true, ..named("/", "f") },
        named("/missing", "f"),
        named("/", ""),
    ];
    for metadata in wrong {
        let failed = upload(&daemon, metadata.clone(), &content).await;
        assert!(failed.is_err(), "{metadata:?}");
    }
    // A client that breaks off: dropping the call resets the stream.
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    for message in upload_messages(named("/", "f"), &content, 64 << 10) {
        sender.try_send(message).ok();
    }
    let mut client = daemon.legacy().await;
    let call = client.upload_file(tokio_stream::wrappers::ReceiverStream::new(receiver));
    assert!(tokio::time::timeout(Duration::from_millis(300), call).await.is_err());
    // Metadata that comes second, and twice.
    let mut messages = upload_messages(named("/", "f"), &content, 64 << 10);
    messages.rotate_left(1);
    let mut client = daemon.legacy().await;
    assert_eq!(code(client.upload_file(tokio_stream::iter(messages))).await, Code::InvalidArgument);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(names(&daemon, "/").await, Vec::<String>::new());
    assert_eq!(daemon.service.upload_count(), 0);
    // Not before: the stream would end as one that says it has ended, all bytes sent.
    drop(sender);
    // SHA-256 is as good as BLAKE3, with and without its name.
    let sha256 = ring::digest::digest(&ring::digest::SHA256, &content);
    let digits: String = sha256.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    for (name, checksum) in [("plain", digits.clone()), ("named", format!("sha256:{digits}"))] {
        let metadata = file::UploadFileMetadata { checksum, ..named("/", name) };
        assert!(upload(&daemon, metadata, &content).await.unwrap().success);
    }
    let blake3 = format!("blake3:{digits}");
    let metadata = file::UploadFileMetadata { checksum: blake3, ..named("/", "no") };
    assert_eq!(code(upload(&daemon, metadata, &content)).await, Code::DataLoss);
}

/// Uploading to a path again kept the old content.
#[tokio::test(flavor = "multi_thread")]
async fn uploading_again_replaces_the_content_if_it_may() {
    let daemon = Daemon::start();
    let (old, new) = (noise(2 << 20, 3), noise(100_000, 4));
    upload(&daemon, named("/", "f"), &old).await.unwrap();
    let kept = upload(&daemon, named("/", "f"), &new).await.unwrap_err();
    assert_eq!(kept.code(), Code::AlreadyExists);
    assert!(download(&daemon, by_path("/f")).await.unwrap().1 == old);
    let metadata = file::UploadFileMetadata { overwrite: true, ..named("/", "f") };
    upload(&daemon, metadata, &new).await.unwrap();
    assert!(download(&daemon, by_path("/f")).await.unwrap().1 == new);
    assert_eq!(names(&daemon, "/").await, ["/f"]);
}

/// Deleting one file broke others that shared its chunks.
#[tokio::test(flavor = "multi_thread")]
async fn deleting_one_of_two_equal_files_leaves_the_other() {
    let daemon = Daemon::start();
    let content = noise(6 << 20, 5);
    upload(&daemon, named("/", "one"), &content).await.unwrap();
    upload(&daemon, named("/", "two"), &content).await.unwrap();
    let fs = daemon.fs.clone();
    tokio::task::spawn_blocking(move || fs.seal_all()).await.unwrap();
    let (one, two) = (info(&daemon, "/one").await, info(&daemon, "/two").await);
    assert!(!one.chunk_ids.is_empty());
    assert_eq!(one.chunk_ids, two.chunk_ids);
    let delete =
        file::DeleteFileRequest { file_id: one.file_id, ..file::DeleteFileRequest::default() };
    let gone = daemon.legacy().await.delete_file(delete).await.unwrap().into_inner();
    assert!(gone.success && gone.deleted_count == 1);
    let fs = daemon.fs.clone();
    tokio::task::spawn_blocking(move || fs.sweep().unwrap()).await.unwrap();
    assert!(download(&daemon, by_path("/two")).await.unwrap().1 == content);
    assert_eq!(names(&daemon, "/").await, ["/two"]);
}

/// Exact multiples of the chunk size never finished.
#[tokio::test(flavor = "multi_thread")]
async fn every_length_around_a_boundary_comes_back() {
    let daemon = Daemon::start();
    for base in [0usize, 4096, 64 << 10, 256 << 10, 1 << 20, 2 << 20, 4 << 20] {
        for len in [base.saturating_sub(1), base, base + 1] {
            let content = noise(len, 6);
            let metadata = file::UploadFileMetadata {
                size: i64::try_from(len).unwrap(),
                overwrite: true,
                ..named("/", "f")
            };
            let sent = upload(&daemon, metadata, &content).await.unwrap();
            assert_eq!(sent.bytes_uploaded, i64::try_from(len).unwrap());
            let (info, found) = download(&daemon, by_path("/f")).await.unwrap();
            assert!(found == content && info.size == i64::try_from(len).unwrap(), "{len}");
        }
    }
}

/// Paths led out of the volume, for reads and writes.
#[tokio::test(flavor = "multi_thread")]
async fn no_path_leads_out_of_the_volume() {
    let daemon = Daemon::start();
    let outside = daemon.dir.path().join("outside");
    std::fs::write(&outside, b"secret").unwrap();
    let absolute = outside.to_str().unwrap().to_owned();
    let link = |path: &str, target: &str| v1::MakeSymlinkRequest {
        path: path.as_bytes().to_vec().into(),
        target: target.as_bytes().to_vec().into(),
        ..v1::MakeSymlinkRequest::default()
    };
    let mut files = daemon.files().await;
    files.make_symlink(link("file", &absolute)).await.unwrap();
    files.make_symlink(link("folder", daemon.dir.path().to_str().unwrap())).await.unwrap();
    let traversals = [
        "../outside".to_owned(),
        "/../outside".to_owned(),
        "a/../../outside".to_owned(),
        "..".to_owned(),
        "./x".to_owned(),
        "x//y".to_owned(),
        "x\0y".to_owned(),
        absolute,
        "folder/outside".to_owned(),
        "file".to_owned(),
    ];
    for path in &traversals {
        assert!(download(&daemon, by_path(path)).await.is_err(), "read {path:?}");
        let delete =
            file::DeleteFileRequest { path: path.clone(), ..file::DeleteFileRequest::default() };
        if path != "file" {
            assert!(daemon.legacy().await.delete_file(delete).await.is_err(), "delete {path:?}");
            assert!(upload(&daemon, named(path, "evil"), b"x").await.is_err(), "write {path:?}");
            let make = file::CreateDirectoryRequest {
                path: path.clone(),
                ..file::CreateDirectoryRequest::default()
            };
            assert!(daemon.legacy().await.create_directory(make).await.is_err(), "mkdir {path:?}");
        }
    }
    for name in ["..", ".", "../x", "/x", "a/b", "x\0"] {
        assert!(upload(&daemon, named("/", name), b"x").await.is_err(), "{name:?}");
    }
    // A link is replaced, not followed.
    let metadata = file::UploadFileMetadata { overwrite: true, ..named("/", "file") };
    upload(&daemon, metadata, b"inside").await.unwrap();
    assert_eq!(std::fs::read(&outside).unwrap(), b"secret");
    let mut there: Vec<_> = std::fs::read_dir(daemon.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    assert_eq!(there, ["grpc.sock", "outside", "tokens", "volume"]);
}

/// `/a` matched `/ab`.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_not_the_beginning_of_another() {
    let daemon = Daemon::start();
    for path in ["/a", "/ab"] {
        let make = file::CreateDirectoryRequest {
            path: path.into(),
            ..file::CreateDirectoryRequest::default()
        };
        assert!(daemon.legacy().await.create_directory(make).await.unwrap().into_inner().success);
        upload(
            &daemon,
            named(path, "f"),
            b"not in the metadata, because it is long".repeat(500).as_slice(),
        )
        .await
        .unwrap();
    }
    assert_eq!(names(&daemon, "/a").await, ["/a/f"]);
    let of = |path: &str| file::GetSyncStatusRequest { path: path.to_owned() };
    let status = daemon.legacy().await.get_sync_status(of("/a")).await.unwrap().into_inner();
    assert!(status.pending_files.iter().all(|file| file.path == "/a/f"));
    let delete = file::DeleteFileRequest {
        path: "/a".into(),
        recursive: true,
        ..file::DeleteFileRequest::default()
    };
    let gone = daemon.legacy().await.delete_file(delete).await.unwrap().into_inner();
    assert_eq!((gone.success, gone.deleted_count), (true, 2));
    assert_eq!(names(&daemon, "/").await, ["/ab", "/ab/f"]);
}

/// Flags were accepted and had no effect.
#[tokio::test(flavor = "multi_thread")]
async fn every_flag_has_its_effect() {
    let daemon = Daemon::start();
    let mut client = daemon.legacy().await;
    let directory = |path: &str, create_parents, permissions| file::CreateDirectoryRequest {
        path: path.to_owned(),
        create_parents,
        permissions,
    };
    let mode = |mode| Some(file::FilePermissions { mode, ..file::FilePermissions::default() });
    assert_eq!(code(client.create_directory(directory("/x/y", false, None))).await, Code::NotFound);
    let made = client.create_directory(directory("/x/y", true, mode(0o750))).await.unwrap();
    let made = made.into_inner().directory_info.unwrap();
    assert!(made.is_directory && made.file_type() == file::FileType::Directory);
    assert_eq!(made.permissions.unwrap().mode, 0o750);
    assert_eq!(
        code(client.create_directory(directory("/x/y", false, None))).await,
        Code::AlreadyExists
    );
    assert_eq!(
        code(client.create_directory(directory("/z", false, mode(-1)))).await,
        Code::InvalidArgument
    );
    let stranger =
        file::FilePermissions { owner: "nobody-there".into(), ..file::FilePermissions::default() };
    assert_eq!(
        code(client.create_directory(directory("/z", false, Some(stranger)))).await,
        Code::Unimplemented
    );

    upload(&daemon, named("/x", ".hidden"), b"1").await.unwrap();
    upload(&daemon, named("/x/y", "deep"), b"22").await.unwrap();
    let list = |path: &str, recursive, include_hidden| file::ListFilesRequest {
        path: path.to_owned(),
        recursive,
        include_hidden,
    };
    for (recursive, include_hidden, count, size) in
        [(false, false, 1, 0), (false, true, 2, 1), (true, false, 2, 2), (true, true, 3, 3)]
    {
        let listed =
            client.list_files(list("/x", recursive, include_hidden)).await.unwrap().into_inner();
        assert_eq!((listed.total_count, listed.total_size), (count, size));
        assert_eq!(listed.current_path, "/x");
    }
    let delete = |path: &str, recursive, force| file::DeleteFileRequest {
        path: path.to_owned(),
        recursive,
        force,
        ..file::DeleteFileRequest::default()
    };
    assert_eq!(
        code(client.delete_file(delete("/x", false, false))).await,
        Code::FailedPrecondition
    );
    assert_eq!(code(client.delete_file(delete("/none", false, false))).await, Code::NotFound);
    assert_eq!(
        client.delete_file(delete("/none", false, true)).await.unwrap().into_inner().deleted_count,
        0
    );
    assert_eq!(
        client.delete_file(delete("/x", true, false)).await.unwrap().into_inner().deleted_count,
        4
    );

    // The client's word for the kind of a file stays, where it says something new.
    let metadata =
        file::UploadFileMetadata { mime_type: "application/x-plate".into(), ..named("/", "p.txt") };
    upload(&daemon, metadata, b"x").await.unwrap();
    assert_eq!(info(&daemon, "/p.txt").await.mime_type, "application/x-plate");
    // `path` may be the whole path, unless that is a directory.
    upload(&daemon, named("/q", "q"), b"x").await.unwrap();
    client.create_directory(directory("/d", false, None)).await.unwrap();
    upload(&daemon, named("/d", "d"), b"x").await.unwrap();
    assert_eq!(names(&daemon, "/").await, ["/d", "/d/d", "/p.txt", "/q"]);
    for wrong in [(-1, 0), (0, -1), (2, 0)] {
        let request =
            file::DownloadFileRequest { offset: wrong.0, length: wrong.1, ..by_path("/q") };
        assert!(download(&daemon, request).await.is_err(), "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sync_status_follows_the_sealing() {
    let daemon = Daemon::start();
    let of = |path: &str| file::GetSyncStatusRequest { path: path.to_owned() };
    let mut client = daemon.legacy().await;
    let status = client.get_sync_status(of("")).await.unwrap().into_inner();
    assert_eq!(status.overall_status(), file::SyncStatus::Synced);
    upload(&daemon, named("/", "f"), &noise(1 << 20, 7)).await.unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let all = client.get_sync_status(of("")).await.unwrap().into_inner();
        let sealed = info(&daemon, "/f").await.chunk_count > 0;
        match all.overall_status() {
            file::SyncStatus::Synced => break,
            file::SyncStatus::Pending => {
                assert_eq!((all.pending_uploads, all.bytes_to_upload), (1, 1 << 20));
            }
            _ => assert!(!sealed, "{all:?}"),
        }
        assert!(std::time::Instant::now() < until, "{all:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(info(&daemon, "/f").await.sync_status(), file::SyncStatus::Synced);
    assert_eq!(code(client.get_sync_status(of("/none"))).await, Code::NotFound);
}

/// Figures of health, replication and log were made up; every node called itself 0.0.0.0.
#[tokio::test(flavor = "multi_thread")]
async fn health_nodes_and_log_tell_the_truth() {
    let daemon = Daemon::start();
    upload(&daemon, named("/", "f"), &noise(3 << 20, 8)).await.unwrap();
    let fs = daemon.fs.clone();
    tokio::task::spawn_blocking(move || fs.seal_all()).await.unwrap();
    let mut nodes = node::node_service_client::NodeServiceClient::new(daemon.uds().await);
    let health = nodes.get_system_health(node::SystemHealthRequest {}).await.unwrap().into_inner();
    let disk = rustix::fs::statvfs(daemon.dir.path()).unwrap();
    assert_eq!(health.total_storage, i64::try_from(disk.f_blocks * disk.f_frsize).unwrap());
    assert!(health.available_storage > 0 && health.used_storage > 0);
    assert_eq!(health.total_files, 1);
    let chunks = info(&daemon, "/f").await.chunk_ids.len();
    assert_eq!(usize::try_from(health.total_chunks).unwrap(), chunks);
    assert!(health.memory_usage > 1 << 20 && health.cpu_usage >= 0.0);
    assert!((0..60).contains(&health.uptime_seconds));
    assert_eq!(health.network_latency, 0.0);

    let beat = node::HeartbeatRequest {
        node_id: "me".into(),
        address: "0.0.0.0:50051".into(),
        system_info: String::new(),
        timestamp: 1,
    };
    let mut remote = node::node_service_client::NodeServiceClient::new(daemon.tcp().await);
    let beat = remote.heartbeat(daemon.by_me(beat)).await.unwrap().into_inner();
    assert!(beat.status && !beat.node_id.is_empty());
    assert!(!beat.address.contains("0.0.0.0"), "{beat:?}");
    let list = nodes.get_node_list(node::NodeListRequest { include_offline: true }).await.unwrap();
    assert!(list.into_inner().nodes.iter().all(|node| !node.address.contains("0.0.0.0")));
    let add = node::AddNodeRequest { address: "127.0.0.1:9".into() };
    assert!(nodes.add_node(add.clone()).await.unwrap().into_inner().node.is_some());
    let list = nodes
        .get_node_list(node::NodeListRequest { include_offline: true })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.total_count, list.online_count + list.offline_count);
    let added = list.nodes.iter().find(|node| node.address == "127.0.0.1:9").unwrap();
    assert!(!added.is_online && added.last_heartbeat == 0);
    let remove = node::RemoveNodeRequest { node_id: "127.0.0.1:9".into() };
    assert!(nodes.remove_node(remove.clone()).await.unwrap().into_inner().success);
    assert_eq!(code(nodes.remove_node(remove)).await, Code::NotFound);
    let request = crate::harness::by(crate::harness::OTHER_TOKEN, add);
    assert_eq!(code(remote.add_node(request)).await, Code::PermissionDenied);
    let portal = nodes
        .get_data_portal_endpoint(node::DataPortalEndpointRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(!portal.available && portal.protocol == "librorum.v1.Files" && portal.host.is_empty());

    let mut logs = log::log_service_client::LogServiceClient::new(daemon.uds().await);
    let all = logs.get_logs(log::GetLogsRequest::default()).await.unwrap().into_inner();
    let stats = logs.get_log_stats(log::GetLogStatsRequest::default()).await.unwrap().into_inner();
    assert_eq!(stats.total_logs, i64::from(all.total_count));
    let export = log::ExportLogsRequest { compress: true, ..log::ExportLogsRequest::default() };
    let export = logs.export_logs(export).await.unwrap().into_inner();
    assert_eq!(&export.data[..2], [0x1f, 0x8b]);
    assert_eq!(
        code(logs.clear_logs(log::ClearLogsRequest::default())).await,
        Code::InvalidArgument
    );
    let clear = log::ClearLogsRequest { clear_all: true, before_timestamp: 0 };
    assert!(logs.clear_logs(clear).await.unwrap().into_inner().success);
    let mut stream =
        logs.stream_logs(log::StreamLogsRequest::default()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_none());
    let mut remote = log::log_service_client::LogServiceClient::new(daemon.tcp().await);
    let request = crate::harness::by(crate::harness::OTHER_TOKEN, log::GetLogsRequest::default());
    assert_eq!(code(remote.get_logs(request)).await, Code::PermissionDenied);
}
