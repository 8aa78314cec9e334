//! gRPC under the same methods: what reaches other machines.
//!
//! A runtime of one thread runs while a caller waits, and at no other time.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use librorum_sys::clock;
use prost::Message;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::client::Grpc as Calls;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::Stream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use super::ClientOptions;
use super::call::{Bounds, cancelled};
use super::connection::disconnected;
use super::trust::Trusted;
use crate::failure::{Failure, Reason};
use crate::frame::{Opcode, Prefix};
use crate::proto::v1;

/// Windows that keep a fast local connection busy; a slow one never fills them.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// The default of 4 MiB is less than a listing may be.
const MESSAGE_LEN_MAX: usize = 16 << 20;

/// The key of an idempotency key, in the metadata of a request.
const KEY_KEY: &str = "librorum-key-bin";

/// The key of a trace id.
const TRACE_KEY: &str = "librorum-trace-id";

const READ_PATH: &str = "/librorum.v1.Files/Read";
const WRITE_PATH: &str = "/librorum.v1.Files/Write";

/// How many messages of an upload wait to be sent.
const QUEUED: usize = 4;

pub(super) struct Grpc {
    runtime: Runtime,
    channel: Channel,
    authorization: Option<MetadataValue<Ascii>>,
}

/// An upload's stream of messages.
pub(super) struct GrpcWrite {
    sender: mpsc::Sender<Bytes>,
    answer: JoinHandle<Result<Bytes, Status>>,
}

impl Grpc {
    pub(super) fn connect(address: &str, options: &ClientOptions) -> Result<Self, Failure> {
        let invalid = |why: &dyn std::fmt::Display| {
            Failure::file(
                librorum_format::ErrorKind::InvalidInput,
                format!("the address {address}: {why}"),
            )
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(Reason::Internal, format!("a runtime: {error}")))?;
        let socket = address.strip_prefix("unix:").map(|path| {
            // Both unix:/path and unix:///path are in use.
            PathBuf::from(path.strip_prefix("//").unwrap_or(path))
        });
        // Over a Unix socket a path as the authority is refused by most servers.
        let origin = if socket.is_some() { "http://localhost" } else { address };
        let mut endpoint = Endpoint::from_shared(origin.to_owned())
            .map_err(|error| invalid(&error))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .tcp_nodelay(true)
            .connect_timeout(options.connect_timeout);
        if let Some(tls) = &options.tls {
            let mut config = ClientTlsConfig::new();
            if tls.authorities.is_empty() {
                config = config.with_enabled_roots();
            } else {
                config = config.ca_certificate(Certificate::from_pem(&tls.authorities));
            }
            if let Some((certificate, key)) = &tls.identity {
                config = config.identity(Identity::from_pem(certificate, key));
            }
            if let Some(name) = &tls.server_name {
                config = config.domain_name(name);
            }
            endpoint = endpoint.tls_config(config).map_err(|error| invalid(&error))?;
        }
        let authorization = if options.token.is_empty() {
            None
        } else {
            let token = std::str::from_utf8(&options.token).map_err(|error| invalid(&error))?;
            let Ok(value) = format!("Bearer {token}").parse() else {
                return Err(invalid(&"the token cannot be sent"));
            };
            Some(value)
        };
        let trusted = Trusted::new(options.expected_uid);
        let channel = runtime.block_on(async {
            match socket {
                Some(path) => {
                    let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
                        let path = path.clone();
                        async move { connect_socket(trusted, &path).await }
                    });
                    endpoint.connect_with_connector(connector).await
                }
                None => endpoint.connect().await,
            }
        });
        let channel = channel.map_err(|error| {
            // The reason is what an error of tonic wraps, not what it says.
            let mut why = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(inner) = source {
                why = format!("{why}: {inner}");
                source = inner.source();
            }
            disconnected(format!("connecting to {address}: {why}"))
        })?;
        Ok(Self { runtime, channel, authorization })
    }

    fn request<T>(&self, message: T, prefix: &Prefix) -> Request<T> {
        let mut request = Request::new(message);
        if prefix.deadline_ms > 0 {
            request.set_timeout(Duration::from_millis(u64::from(prefix.deadline_ms)));
        }
        let metadata = request.metadata_mut();
        if let Some(authorization) = &self.authorization {
            metadata.insert("authorization", authorization.clone());
        }
        if prefix.trace_id != 0 {
            metadata.insert(TRACE_KEY, prefix.trace_id.into());
        }
        if let Some(key) = &prefix.key {
            metadata.insert_bin(KEY_KEY, MetadataValue::from_bytes(key));
        }
        request
    }

    fn calls(&self) -> Calls<Channel> {
        Calls::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_LEN_MAX)
            .max_encoding_message_size(MESSAGE_LEN_MAX)
    }

    /// Runs a call within its bounds.
    fn run<T>(
        &self,
        bounds: &Bounds,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Failure> {
        self.runtime.block_on(async {
            let bounded = async {
                match bounds.until {
                    None => call.await.map_err(|status| failure(&status)),
                    Some(until) => {
                        // The daemon knows the deadline, too; its answer says more.
                        let left = until.saturating_sub(clock::monotonic());
                        match tokio::time::timeout(left + Duration::from_millis(500), call).await {
                            Ok(result) => result.map_err(|status| failure(&status)),
                            Err(_) => Err(Failure::new(
                                Reason::DeadlineExceeded,
                                "the daemon did not answer in time",
                            )),
                        }
                    }
                }
            };
            match &bounds.cancel {
                None => bounded.await,
                Some(cancel) => tokio::select! {
                    result = bounded => result,
                    () = cancel.cancelled() => Err(cancelled()),
                },
            }
        })
    }

    pub(super) fn unary(
        &self,
        opcode: Opcode,
        message: Bytes,
        prefix: &Prefix,
        bounds: &Bounds,
    ) -> Result<Bytes, Failure> {
        let request = self.request(message, prefix);
        let calls = self.calls();
        let path = path_of(opcode)?;
        self.run(bounds, one(calls, path, request))
    }

    /// Many calls side by side.
    pub(super) fn unary_many(
        &self,
        calls: impl Iterator<Item = (Opcode, Bytes, Prefix)>,
        bounds: &Bounds,
    ) -> Result<Vec<Result<Bytes, Failure>>, Failure> {
        // More than this at a time waits in the daemon, and not here.
        let permits = Arc::new(tokio::sync::Semaphore::new(64));
        let calls: Vec<_> = calls
            .map(|(opcode, message, prefix)| {
                let request = self.request(message, &prefix);
                let calls = self.calls();
                let permits = Arc::clone(&permits);
                path_of(opcode).map(|path| async move {
                    let _permit = permits.acquire().await;
                    one(calls, path, request).await
                })
            })
            .collect();
        self.run(bounds, async {
            let tasks: Vec<_> = calls.into_iter().map(|call| call.map(tokio::spawn)).collect();
            let mut answers = Vec::with_capacity(tasks.len());
            for task in tasks {
                answers.push(match task {
                    Err(failure) => Err(failure),
                    Ok(task) => match task.await {
                        Ok(result) => result.map_err(|status| failure(&status)),
                        Err(error) => Err(Failure::new(Reason::Internal, error.to_string())),
                    },
                });
            }
            Ok(answers)
        })
    }

    /// Reads into a buffer, and answers how many bytes there were.
    pub(super) fn read(
        &self,
        request: &v1::ReadRequest,
        buffer: &mut [u8],
        prefix: &Prefix,
        bounds: &Bounds,
    ) -> Result<usize, Failure> {
        let message = Bytes::from(request.encode_to_vec());
        let request = self.request(message, prefix);
        let mut calls = self.calls();
        let read = async {
            calls.ready().await.map_err(|error| not_ready(&error))?;
            let path = PathAndQuery::from_static(READ_PATH);
            let mut stream = calls.server_streaming(request, path, Plain).await?.into_inner();
            let mut filled = 0;
            while let Some(message) = stream.message().await? {
                let response = v1::ReadResponse::decode(message)
                    .map_err(|error| Status::internal(error.to_string()))?;
                let end = filled + response.data.len();
                let Some(room) = buffer.get_mut(filled..end) else {
                    return Err(Status::internal("more bytes came than were asked for"));
                };
                room.copy_from_slice(&response.data);
                filled = end;
            }
            Ok(filled)
        };
        self.run(bounds, read)
    }

    pub(super) fn begin_write(&self, bounds: &Bounds) -> Result<GrpcWrite, Failure> {
        let (sender, receiver) = mpsc::channel(QUEUED);
        // The stream lives as long as the upload, whose calls have their own deadlines.
        let prefix = Bounds { until: None, ..bounds.clone() }.prefix(None)?;
        let request = self.request(Queue(receiver), &prefix);
        let mut calls = self.calls();
        let answer = self.runtime.spawn(async move {
            calls.ready().await.map_err(|error| not_ready(&error))?;
            let path = PathAndQuery::from_static(WRITE_PATH);
            calls.client_streaming(request, path, Plain).await.map(tonic::Response::into_inner)
        });
        Ok(GrpcWrite { sender, answer })
    }

    pub(super) fn write(
        &self,
        stream: &mut GrpcWrite,
        message: &v1::WriteRequest,
        bounds: &Bounds,
    ) -> Result<(), Failure> {
        let GrpcWrite { sender, answer } = stream;
        let message = Bytes::from(message.encode_to_vec());
        self.run(bounds, async {
            if sender.send(message).await.is_ok() {
                return Ok(());
            }
            // The call has ended early; its answer says why.
            match answer.await {
                Ok(Err(status)) => Err(status),
                Ok(Ok(_)) | Err(_) => Err(Status::unavailable("the upload's stream has ended")),
            }
        })
    }

    pub(super) fn finish_write(&self, stream: GrpcWrite, bounds: &Bounds) -> Result<(), Failure> {
        let GrpcWrite { sender, answer } = stream;
        drop(sender);
        self.run(bounds, async {
            match answer.await {
                Ok(result) => result.map(drop),
                Err(error) => Err(Status::internal(error.to_string())),
            }
        })
    }
}

async fn connect_socket(
    trusted: Trusted,
    path: &std::path::Path,
) -> Result<hyper_util::rt::TokioIo<tokio::net::UnixStream>, Failure> {
    trusted.check_path(path)?;
    let io = |error: std::io::Error| disconnected(format!("{}: {error}", path.display()));
    let stream = tokio::net::UnixStream::connect(path).await.map_err(io)?;
    let stream = stream.into_std().map_err(io)?;
    trusted.check_peer(&stream)?;
    let stream = tokio::net::UnixStream::from_std(stream).map_err(io)?;
    Ok(hyper_util::rt::TokioIo::new(stream))
}

async fn one(
    mut calls: Calls<Channel>,
    path: PathAndQuery,
    request: Request<Bytes>,
) -> Result<Bytes, Status> {
    calls.ready().await.map_err(|error| not_ready(&error))?;
    calls.unary(request, path, Plain).await.map(tonic::Response::into_inner)
}

fn not_ready(error: &tonic::transport::Error) -> Status {
    Status::unavailable(format!("the connection: {error}"))
}

fn path_of(opcode: Opcode) -> Result<PathAndQuery, Failure> {
    opcode.grpc_path().map(PathAndQuery::from_static).ok_or_else(|| {
        Failure::new(Reason::Unimplemented, format!("{opcode:?} is an operation of frames only"))
    })
}

fn failure(status: &Status) -> Failure {
    Failure::from(status)
}

/// Messages as they are: encoded before, decoded after, and not copied between.
#[derive(Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = from.remaining();
        Ok(Some(from.copy_to_bytes(len)))
    }
}

/// The messages of an upload, as tonic wants them.
struct Queue(mpsc::Receiver<Bytes>);

impl Stream for Queue {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.0.poll_recv(context)
    }
}
