//! A daemon in a temporary folder, and clients of it.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use librorum_daemon::admin::Admin;
use librorum_daemon::grpc::{self, Handle, Options, ServeError, TlsOptions};
use librorum_daemon::logbook::LogBook;
use librorum_daemon::metrics::Metrics;
use librorum_daemon::nodes::{self, Nodes};
use librorum_daemon::service::{ServedVolume, Service};
use librorum_fs::{FormatOptions, Fs, FsOptions, Volume};
use librorum_rpc::proto::{file, v1};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

pub(crate) struct Daemon {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) fs: Arc<Fs>,
    pub(crate) service: Service,
    pub(crate) handle: Handle,
    pub(crate) token: String,
}

pub(crate) const OTHER_TOKEN: &str = "a-token-of-somebody-else";
pub(crate) const OTHER_UID: u32 = 54321;

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::with(Vec::new(), None).unwrap()
    }

    /// Without addresses: loopback.
    pub(crate) fn with(tcp: Vec<SocketAddr>, tls: Option<TlsOptions>) -> Result<Self, ServeError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let folder = dir.path().join("volume");
        Volume::format(&folder, &FormatOptions::default()).unwrap();
        let options = FsOptions { quiet_ms: 100, ..FsOptions::default() };
        let fs = Fs::open_volume(&folder, options).unwrap();
        let service = Service::new();
        service.add_volume(ServedVolume::new("main", Arc::clone(&fs), false)).unwrap();
        let metrics = Metrics::new();
        let logs = LogBook::in_memory();
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let tcp = if tcp.is_empty() { vec![loopback] } else { tcp };
        let known = nodes::Options { listen: tcp.clone(), ..nodes::Options::default() };
        let nodes = Nodes::start(known).unwrap();
        let admin = Admin::new(service.clone(), metrics.clone(), logs.clone(), nodes.clone(), None);
        let tokens = dir.path().join("tokens");
        let token = "0123456789abcdef0123456789abcdef".to_owned();
        std::fs::write(&tokens, format!("{token}\n{OTHER_TOKEN} {OTHER_UID} other\n")).unwrap();
        std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o600)).unwrap();
        let options =
            Options { tcp, socket: Some(dir.path().join("grpc.sock")), tls, tokens: Some(tokens) };
        let handle = grpc::serve(service.clone(), admin, metrics, logs, nodes, &options)?;
        Ok(Self { dir, fs, service, handle, token })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.handle.addresses()[0]
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.handle.socket().unwrap().to_owned()
    }

    pub(crate) async fn tcp(&self) -> Channel {
        tuned(Endpoint::from_shared(format!("http://{}", self.address())).unwrap())
            .connect()
            .await
            .unwrap()
    }

    pub(crate) async fn uds(&self) -> Channel {
        uds(&self.socket()).await
    }

    /// A request over TCP by the daemon's own user.
    pub(crate) fn by_me<T>(&self, message: T) -> Request<T> {
        by(&self.token, message)
    }

    pub(crate) async fn files(&self) -> v1::files_client::FilesClient<Channel> {
        v1::files_client::FilesClient::new(self.uds().await).max_decoding_message_size(16 << 20)
    }

    pub(crate) async fn legacy(&self) -> file::file_service_client::FileServiceClient<Channel> {
        file::file_service_client::FileServiceClient::new(self.uds().await)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.handle.shut_down(Duration::from_secs(5));
        self.service.remove_volume("main");
        self.fs.shut_down().unwrap();
    }
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint.initial_stream_window_size(8 << 20).initial_connection_window_size(16 << 20)
}

pub(crate) fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

pub(crate) async fn uds(path: &Path) -> Channel {
    let path = path.to_owned();
    tuned(Endpoint::from_static("http://localhost"))
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?))
            }
        }))
        .await
        .unwrap()
}

/// Bytes that neither shrink nor repeat.
pub(crate) fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn upload_messages(
    metadata: file::UploadFileMetadata,
    content: &[u8],
    piece: usize,
) -> Vec<file::UploadFileRequest> {
    use file::upload_file_request::Data;
    let first = Data::Metadata(metadata);
    let chunks = content.chunks(piece).map(|piece| Data::Chunk(piece.to_vec().into()));
    std::iter::once(first)
        .chain(chunks)
        .map(|data| file::UploadFileRequest { data: Some(data) })
        .collect()
}

/// Uploads as the clients of the first Librorum do.
pub(crate) async fn upload(
    daemon: &Daemon,
    metadata: file::UploadFileMetadata,
    content: &[u8],
) -> Result<file::UploadFileResponse, Status> {
    let messages = upload_messages(metadata, content, 64 << 10);
    let sent = daemon.legacy().await.upload_file(tokio_stream::iter(messages)).await?;
    Ok(sent.into_inner())
}

pub(crate) fn named(path: &str, name: &str) -> file::UploadFileMetadata {
    file::UploadFileMetadata {
        name: name.to_owned(),
        path: path.to_owned(),
        ..file::UploadFileMetadata::default()
    }
}

/// The first message's file and the bytes of the others.
pub(crate) async fn download(
    daemon: &Daemon,
    request: file::DownloadFileRequest,
) -> Result<(file::FileInfo, Vec<u8>), Status> {
    use file::download_file_response::Data;
    let mut stream = daemon.legacy().await.download_file(request).await?.into_inner();
    let first = stream.message().await?.expect("a first message");
    let Some(Data::FileInfo(info)) = first.data else { panic!("not the file: {first:?}") };
    let mut at = first.offset;
    let mut content = Vec::new();
    while let Some(message) = stream.message().await? {
        let Some(Data::Chunk(bytes)) = message.data else { panic!("no bytes") };
        assert_eq!((message.offset, message.total_size), (at, info.size));
        at += i64::try_from(bytes.len()).unwrap();
        content.extend_from_slice(&bytes);
    }
    Ok((info, content))
}

pub(crate) fn by_path(path: &str) -> file::DownloadFileRequest {
    file::DownloadFileRequest { path: path.to_owned(), ..file::DownloadFileRequest::default() }
}
