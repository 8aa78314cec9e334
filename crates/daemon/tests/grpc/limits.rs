//! Memory stays small whatever goes through it, and small calls are quick.

use std::time::{Duration, Instant};

use librorum_rpc::proto::{file, v1};

use crate::harness::{Daemon, named};

const GIB: u64 = 1 << 30;

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64
}

/// Whole files were buffered in memory.
///
/// In a process of its own, because other tests use memory too. The client is in it as well, and counts.
#[test]
fn a_gibibyte_goes_up_and_down_in_little_memory() {
    const ALONE: &str = "LIBRORUM_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return move_a_gibibyte();
    }
    let this = "limits::a_gibibyte_goes_up_and_down_in_little_memory";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", this, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let text = text + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    println!("{text}");
}

fn move_a_gibibyte() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    let before = resident_bytes();
    runtime.block_on(async {
        let piece = bytes::Bytes::from(crate::harness::noise(1 << 20, 9));
        let first =
            file::UploadFileMetadata { size: i64::try_from(GIB).unwrap(), ..named("/", "big") };
        let first = file::UploadFileRequest {
            data: Some(file::upload_file_request::Data::Metadata(first)),
        };
        let chunk = file::UploadFileRequest {
            data: Some(file::upload_file_request::Data::Chunk(piece.clone())),
        };
        let pieces = usize::try_from(GIB >> 20).unwrap();
        let messages = std::iter::once(first).chain(std::iter::repeat_n(chunk, pieces));
        let started = Instant::now();
        let sent = daemon.legacy().await.upload_file(tokio_stream::iter(messages)).await.unwrap();
        assert_eq!(sent.into_inner().bytes_uploaded, i64::try_from(GIB).unwrap());
        println!("upload: {:?}", started.elapsed());

        let opened = v1::OpenWriteRequest { path: b"big2".to_vec().into(), ..Default::default() };
        let mut files = daemon.files().await;
        let upload = files.open_write(opened).await.unwrap().into_inner().upload;
        let parts = (0..pieces as u64).map({
            let piece = piece.clone();
            move |index| v1::WriteRequest { upload, offset: index << 20, data: piece.clone() }
        });
        let started = Instant::now();
        files.write(tokio_stream::iter(parts)).await.unwrap();
        println!("write: {:?}", started.elapsed());
        let commit = v1::CommitRequest {
            upload,
            path: b"big2".to_vec().into(),
            len: GIB,
            ..Default::default()
        };
        files.commit(commit).await.unwrap();

        let started = Instant::now();
        let read = v1::ReadRequest { path: b"big2".to_vec().into(), ..Default::default() };
        let mut stream = files.read(read).await.unwrap().into_inner();
        let mut len = 0;
        while let Some(message) = stream.message().await.unwrap() {
            assert!(message.data == piece);
            len += message.data.len() as u64;
            // Slower than the server: it must wait, not buffer.
            if len % (256 << 20) == 0 {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
        assert_eq!(len, GIB);
        println!("read: {:?}", started.elapsed());
    });
    let peak = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak: u64 = peak
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .map(|rest| rest.trim().trim_end_matches(" kB").parse().unwrap())
        .unwrap();
    let grown = (peak << 10).saturating_sub(before);
    println!("before: {} MiB, peak: {} MiB", before >> 20, peak >> 10);
    assert!(grown < 100 << 20, "it grew by {} MiB", grown >> 20);
}

/// Without TCP_NODELAY every half-filled packet waits 40 ms.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_over_tcp_does_not_wait_for_acknowledgements() {
    let daemon = Daemon::start();
    let mut files = v1::files_client::FilesClient::new(daemon.tcp().await);
    let opened = v1::OpenWriteRequest { path: b"f".to_vec().into(), ..Default::default() };
    let upload = files.open_write(daemon.by_me(opened)).await.unwrap().into_inner().upload;
    let piece = bytes::Bytes::from(vec![7; 64 << 10]);
    let parts = (0..512).map(move |index| v1::WriteRequest {
        upload,
        offset: index << 16,
        data: piece.clone(),
    });
    let started = Instant::now();
    files.write(daemon.by_me(tokio_stream::iter(parts))).await.unwrap();
    let took = started.elapsed();
    // 32 MiB: 0.02 s here, 20 s with the mistake.
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_reads_does_not_stop_others() {
    let daemon = Daemon::start();
    let mut files = daemon.files().await;
    let put = v1::PutRequest {
        path: b"f".to_vec().into(),
        data: crate::harness::noise(12 << 20, 3).into(),
        ..Default::default()
    };
    files.put(put).await.unwrap();
    let mut stuck = Vec::new();
    for _ in 0..32 {
        let read = v1::ReadRequest { path: b"f".to_vec().into(), ..Default::default() };
        let mut stream = daemon.files().await.read(read).await.unwrap().into_inner();
        stream.message().await.unwrap();
        stuck.push(stream);
    }
    let started = Instant::now();
    let stat = v1::StatRequest { path: b"f".to_vec().into(), ..Default::default() };
    files.stat(stat).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2));
}
