//! Uploads with a key that nobody goes on with do not stay for ever.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use librorum_daemon::service::{Call, Caller, ServedVolume, Service};
use librorum_fs::{FormatOptions, Fs, FsOptions, Volume};
use librorum_rpc::proto::v1;

fn begin(service: &Service, call: &Call, key: u8) -> u64 {
    let request = v1::OpenWriteRequest {
        path: "file".into(),
        key: vec![key; 16].into(),
        ..v1::OpenWriteRequest::default()
    };
    let upload = service.open_write(call, &request).unwrap();
    upload.write_at(0, b"begun").unwrap();
    upload.id
}

/// Makes an upload look as if nobody had written to it for so long.
fn age(folder: &Path, key: u8, by: Duration) {
    let uid = rustix::process::geteuid().as_raw();
    let path = folder.join("uploads").join(format!("{uid:x}-{}", format!("{key:02x}").repeat(16)));
    let file = File::options().write(true).open(path).unwrap();
    let then = file.metadata().unwrap().modified().unwrap() - by;
    file.set_modified(then).unwrap();
}

#[test]
fn an_upload_that_nobody_went_on_with_for_a_day_is_removed() {
    const HOUR: Duration = Duration::from_secs(3600);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("volume");
    Volume::format(&folder, &FormatOptions::default()).unwrap();
    let fs = Fs::open_volume(&folder, FsOptions::default()).unwrap();
    let service = Service::new();
    service.add_volume(ServedVolume::new("one", Arc::clone(&fs), false)).unwrap();
    let call = Call::new(Caller::own());
    let is_known = |service: &Service, key: u8| {
        let request = v1::QueryUploadRequest { key: vec![key; 16].into(), ..Default::default() };
        service.query_upload(&call, &request).unwrap().known
    };
    let open = [1, 2, 3].map(|key| begin(&service, &call, key));
    // The third stays open: whoever has it may still write.
    service.close_uploads(&open[..2]);
    age(&folder, 1, 25 * HOUR);
    age(&folder, 2, 23 * HOUR);
    age(&folder, 3, 25 * HOUR);
    let fourth = begin(&service, &call, 4);
    assert_eq!([1, 2, 3, 4].map(|key| is_known(&service, key)), [false, true, true, true]);

    // And by the next one who serves the volume.
    service.close_uploads(&[open[2], fourth]);
    age(&folder, 2, 25 * HOUR);
    age(&folder, 4, HOUR);
    drop(service.remove_volume("one"));
    let next = Service::new();
    next.add_volume(ServedVolume::new("one", Arc::clone(&fs), false)).unwrap();
    assert_eq!([2, 4].map(|key| is_known(&next, key)), [false, true]);
    drop(next);
    drop(service);
    fs.shut_down().unwrap();
}
