//! File bytes, in front of the generated services: `Files/Read`, `Files/Write` and
//! `FileService/DownloadFile`, with messages made by hand ([`super::wire`]).
//!
//! What a stream holds is bounded: on the way out [`READS_AHEAD`] pieces and what the connection has not
//! sent yet; on the way in one message and the stream's window. The body is asked for its next frame only
//! while the connection has room, so a slow client slows down the reading.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use librorum_format::ErrorKind;
use librorum_rpc::Failure;
use librorum_rpc::proto::{file, v1};
use prost::Message;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use super::call::{Context, Shared, Ticket, Weight};
use super::legacy;
use super::pool::PIECE_BYTES;
use super::wire::{self, Known, Messages};
use crate::service::{OpenFile, Upload};

/// One piece is read while the one before is sent.
const READS_AHEAD: usize = 2;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Bulk<S> {
    inner: S,
    shared: Shared,
}

impl<S> Bulk<S> {
    pub(super) fn new(inner: S, shared: Shared) -> Self {
        Self { inner, shared }
    }
}

impl<S: NamedService> NamedService for Bulk<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for Bulk<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let shared = self.shared.clone();
        match request.uri().path() {
            "/librorum.v1.Files/Read" => answered(read(shared, request)),
            "/librorum.v1.Files/Write" => answered(write(shared, request)),
            "/file.FileService/DownloadFile" => answered(download(shared, request)),
            _ => Box::pin(self.inner.call(request)),
        }
    }
}

fn answered(
    work: impl Future<Output = Result<http::Response<Body>, Status>> + Send + 'static,
) -> Answer {
    Box::pin(async { Ok(work.await.unwrap_or_else(Status::into_http)) })
}

async fn read(
    shared: Shared,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Status> {
    let context = Context::of_extensions(request.extensions().get())?;
    let mut ticket = shared.begin(context, "READ", Bytes::new(), Weight::Stream)?;
    let asked: Result<v1::ReadRequest, Failure> = Messages::new(request.into_body()).only().await;
    let asked = asked.map_err(|failure| ticket.fail(failure))?;
    ticket.set_path(asked.path.clone());
    let inner = shared.clone();
    let opened = {
        let asked = asked.clone();
        let work = ticket
            .work(move |call| inner.service.open_read(call, &asked.volume, &asked.path, asked.ino));
        work.await
    };
    let file = opened.map_err(|failure| ticket.fail(failure))?;
    let entry = file.entry().clone();
    let (start, end) = range(asked.offset, asked.length, entry.size_bytes);
    let first = v1::ReadResponse { data: Bytes::new(), offset: start, entry: Some(entry) };
    let mut body = FileBody::new(ticket, shared, file, start..end, Style::V1);
    if start == end {
        body.out.push_back(wire::message(&first));
    } else {
        body.entry = first.entry;
    }
    Ok(wire::response(Body::new(body)))
}

/// What there is of a range: nothing behind the end of the file, as in read(2). Length 0 is the rest.
fn range(offset: u64, length: u64, size_bytes: u64) -> (u64, u64) {
    let start = offset.min(size_bytes);
    let end = if length == 0 { size_bytes } else { start.saturating_add(length).min(size_bytes) };
    (start, end)
}

async fn download(
    shared: Shared,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Status> {
    let context = Context::of_extensions(request.extensions().get())?;
    let mut ticket = shared.begin(context, "DownloadFile", Bytes::new(), Weight::Stream)?;
    let asked: Result<file::DownloadFileRequest, Failure> =
        Messages::new(request.into_body()).only().await;
    let asked = asked.map_err(|failure| ticket.fail(failure))?;
    ticket.set_path(asked.path.clone().into());
    let inner = shared.clone();
    let opened = ticket.work(move |call| legacy::file::open_download(&inner, call, &asked)).await;
    let opened = opened.map_err(|failure| ticket.fail(failure))?;
    let size_bytes = opened.file.entry().size_bytes;
    let total_size = i64::try_from(size_bytes).unwrap_or(i64::MAX);
    let range = opened.range;
    let first = file::DownloadFileResponse {
        data: Some(file::download_file_response::Data::FileInfo(opened.info)),
        offset: i64::try_from(range.start).unwrap_or(i64::MAX),
        total_size,
    };
    let mut body = FileBody::new(ticket, shared, opened.file, range, Style::Legacy { total_size });
    body.out.push_back(wire::message(&first));
    Ok(wire::response(Body::new(body)))
}

/// Which message the pieces are put into.
#[derive(Clone, Copy, Debug)]
enum Style {
    V1,
    Legacy { total_size: i64 },
}

type Reading = JoinHandle<Result<Bytes, Failure>>;

/// The answer that is made while it is sent.
struct FileBody {
    ticket: Ticket,
    shared: Shared,
    file: Arc<OpenFile>,
    style: Style,
    /// What goes into the first message.
    entry: Option<v1::Entry>,
    /// Where the next piece to be read starts, and the end of all of them.
    next: u64,
    end: u64,
    /// Pieces that are being read, in order.
    readings: VecDeque<(u64, Reading)>,
    /// Ready to be sent.
    out: VecDeque<Bytes>,
    has_ended: bool,
}

impl FileBody {
    fn new(
        ticket: Ticket,
        shared: Shared,
        file: OpenFile,
        range: std::ops::Range<u64>,
        style: Style,
    ) -> Self {
        Self {
            ticket,
            shared,
            file: Arc::new(file),
            style,
            entry: None,
            next: range.start,
            end: range.end,
            readings: VecDeque::new(),
            out: VecDeque::new(),
            has_ended: false,
        }
    }

    fn read_ahead(&mut self) {
        while self.readings.len() < READS_AHEAD && self.next < self.end {
            let offset = self.next;
            let len = usize::try_from(self.end - offset).unwrap_or(usize::MAX).min(PIECE_BYTES);
            self.next += len as u64;
            let (shared, file) = (self.shared.clone(), Arc::clone(&self.file));
            let reading = tokio::spawn(
                self.ticket.work(move |_call| read_piece(&shared, &file, offset, len)),
            );
            self.readings.push_back((offset, reading));
        }
    }

    /// Puts a piece into a message.
    fn put(&mut self, offset: u64, piece: Bytes) {
        let (field, rest) = match self.style {
            Style::V1 => {
                let entry = self.entry.take();
                (1, v1::ReadResponse { data: Bytes::new(), offset, entry }.encode_to_vec())
            }
            Style::Legacy { total_size } => {
                let offset = i64::try_from(offset).unwrap_or(i64::MAX);
                (2, file::DownloadFileResponse { data: None, offset, total_size }.encode_to_vec())
            }
        };
        self.ticket.count_bytes(piece.len());
        self.out.push_back(wire::head(field, piece.len(), rest.len()));
        self.out.push_back(piece);
        if !rest.is_empty() {
            self.out.push_back(rest.into());
        }
    }

    fn end(&mut self, ended: Result<(), Failure>) -> Frame<Bytes> {
        self.has_ended = true;
        self.readings.clear();
        Frame::trailers(wire::trailers(self.ticket.settle(ended)))
    }
}

fn read_piece(shared: &Shared, file: &OpenFile, offset: u64, len: usize) -> Result<Bytes, Failure> {
    let mut buffer = shared.buffers.take();
    let mut filled = 0;
    while filled < len {
        let space = &mut buffer.space(len)[filled..];
        match file.read_at(offset + filled as u64, space)? {
            // The client was promised more: what is missing must not look like the end.
            0 => {
                let message = "the file has become shorter while it was read; read it again";
                return Err(Failure::file(ErrorKind::Busy, message));
            }
            count => filled += count,
        }
    }
    Ok(buffer.into_bytes(len))
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(bytes) = this.out.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if this.has_ended {
                return Poll::Ready(None);
            }
            this.read_ahead();
            let Some((offset, reading)) = this.readings.front_mut() else {
                return Poll::Ready(Some(Ok(this.end(Ok(())))));
            };
            let offset = *offset;
            let read = ready!(Pin::new(reading).poll(context));
            this.readings.pop_front();
            match read {
                Ok(Ok(piece)) => this.put(offset, piece),
                Ok(Err(failure)) => return Poll::Ready(Some(Ok(this.end(Err(failure))))),
                Err(error) => {
                    let message = format!("a read did not end well: {error}");
                    let failure = Failure::new(librorum_rpc::Reason::Internal, message);
                    return Poll::Ready(Some(Ok(this.end(Err(failure)))));
                }
            }
        }
    }
}

async fn write(
    shared: Shared,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Status> {
    let context = Context::of_extensions(request.extensions().get())?;
    let mut ticket = shared.begin(context, "WRITE", Bytes::new(), Weight::Stream)?;
    let written = receive(&shared, &mut ticket, Messages::new(request.into_body())).await;
    let written_bytes = ticket.settle(written)?;
    Ok(wire::response(Body::new(Known::one(&v1::WriteResponse { written_bytes }))))
}

/// Writes what comes to where it belongs; each message is on its way to the disk before the next one is
/// taken, which is what holds a fast client back.
async fn receive(
    shared: &Shared,
    ticket: &mut Ticket,
    mut messages: Messages,
) -> Result<u64, Failure> {
    let mut upload: Option<Arc<Upload>> = None;
    let mut written_bytes = 0;
    loop {
        let next = match ticket.context().deadline {
            None => messages.next().await,
            Some(deadline) => tokio::time::timeout_at(deadline, messages.next())
                .await
                .unwrap_or_else(|_elapsed| Err(super::call::deadline_exceeded())),
        };
        let Some(message) = next? else { break };
        let part = wire::write_part(message)?;
        let len = part.data.len();
        let known = upload.take().filter(|upload| upload.id == part.upload);
        let inner = shared.clone();
        let work = ticket.work(move |call| {
            let upload = match known {
                Some(upload) => upload,
                None => inner.service.upload(call, part.upload)?,
            };
            let mut offset = part.offset;
            for bytes in part.data.parts() {
                upload.write_at(offset, bytes)?;
                offset += bytes.len() as u64;
            }
            Ok(upload)
        });
        upload = Some(work.await?);
        written_bytes += len as u64;
        ticket.count_bytes(len);
    }
    Ok(written_bytes)
}

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn a_range_ends_with_the_file() {
        assert_eq!(range(0, 0, 10), (0, 10));
        assert_eq!(range(4, 3, 10), (4, 7));
        assert_eq!(range(4, u64::MAX, 10), (4, 10));
        assert_eq!(range(11, 1, 10), (10, 10));
        assert_eq!(range(0, 0, 0), (0, 0));
    }
}
