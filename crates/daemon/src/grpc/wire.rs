//! Messages of gRPC, taken apart and put together by hand where they carry file bytes.
//!
//! A stock encoder copies the bytes into the message, a stock decoder out of it. Here a message is a few
//! bytes before and behind the buffer that was read from the disk, and one that comes in stays in the
//! buffers that the connection has filled. On the wire there is no difference.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use librorum_rpc::{Failure, Reason};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_varint, skip_field,
};
use tonic::Status;
use tonic::body::Body;

/// A message may have so many bytes; the same holds for the stock decoders beside this one.
pub(super) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What comes before the `payload_len` bytes of a length-delimited field with this number, in a message
/// whose other fields, behind it, take `rest_len` bytes.
pub(super) fn head(field: u8, payload_len: usize, rest_len: usize) -> Bytes {
    let mut inner = BytesMut::with_capacity(16);
    if payload_len > 0 {
        // Wire type 2; the numbers used here are below 16, so a key is one byte.
        inner.put_u8(field << 3 | 2);
        encode_varint(payload_len as u64, &mut inner);
    }
    let message_len = inner.len() + payload_len + rest_len;
    let mut out = BytesMut::with_capacity(5 + inner.len());
    out.put_u8(0);
    // Pieces are far below 4 GiB.
    out.put_u32(u32::try_from(message_len).unwrap_or(u32::MAX));
    out.extend_from_slice(&inner);
    out.freeze()
}

/// A whole message.
pub(super) fn message(message: &impl prost::Message) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.encoded_len());
    out.extend_from_slice(&head(0, 0, message.encoded_len()));
    out.extend_from_slice(&message.encode_to_vec());
    out.freeze()
}

/// The trailers of a call that ended like this.
pub(super) fn trailers(ended: Result<(), Status>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let status = ended.err().unwrap_or_else(|| Status::ok(""));
    if status.add_header(&mut headers).is_err() {
        headers.insert("grpc-status", http::HeaderValue::from_static("13"));
    }
    headers
}

/// An answer that streams this body.
pub(super) fn response(body: Body) -> http::Response<Body> {
    let mut response = http::Response::new(body);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    response
}

/// A body that is known from the beginning.
#[derive(Debug)]
pub(super) struct Known(pub(super) VecDeque<Frame<Bytes>>);

impl Known {
    /// One message, and success.
    pub(super) fn one(answer: &impl prost::Message) -> Self {
        Self(VecDeque::from([Frame::data(message(answer)), Frame::trailers(trailers(Ok(())))]))
    }
}

impl http_body::Body for Known {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Status>>> {
        std::task::Poll::Ready(self.0.pop_front().map(Ok))
    }
}

/// Bytes in the buffers they came in.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    parts: VecDeque<Bytes>,
    len: usize,
}

impl Chain {
    fn push(&mut self, part: Bytes) {
        self.len += part.len();
        if !part.is_empty() {
            self.parts.push_back(part);
        }
    }

    /// Takes the first `len` bytes, which are there, without copying them.
    fn take_front(&mut self, mut len: usize) -> Self {
        let mut front = Self::default();
        while len > 0
            && let Some(first) = self.parts.front_mut()
        {
            let part = first.split_to(len.min(first.len()));
            if first.is_empty() {
                self.parts.pop_front();
            }
            self.len -= part.len();
            len -= part.len();
            front.push(part);
        }
        front
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = &Bytes> {
        self.parts.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Buf for Chain {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| part)
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.len, "{count} of {} bytes", self.len);
        self.take_front(count);
    }
}

/// The messages of a request, one after the other.
#[derive(Debug)]
pub(super) struct Messages {
    body: Body,
    received: Chain,
}

impl Messages {
    pub(super) fn new(body: Body) -> Self {
        Self { body, received: Chain::default() }
    }

    /// Waits until `len` bytes are there; false at the end of the stream.
    async fn fill(&mut self, len: usize) -> Result<bool, Failure> {
        while self.received.len < len {
            if self.body.is_end_stream() {
                return Ok(false);
            }
            match self.body.frame().await {
                None => return Ok(false),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.received.push(data);
                    }
                }
                Some(Err(error)) => {
                    let message = format!("the stream broke: {error}");
                    return Err(Failure::new(Reason::Cancelled, message));
                }
            }
        }
        Ok(true)
    }

    /// The next message, or none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Chain>, Failure> {
        let protocol = |message: String| Failure::new(Reason::Protocol, message);
        if !self.fill(5).await? {
            return match self.received.len {
                0 => Ok(None),
                _ => Err(protocol("the stream ends inside a message's header".into())),
            };
        }
        if self.received.get_u8() != 0 {
            return Err(Failure::new(
                Reason::Unimplemented,
                "compressed messages are not taken: file bytes rarely shrink, and it costs the speed",
            ));
        }
        let len = usize::try_from(self.received.get_u32()).unwrap_or(usize::MAX);
        if len > MESSAGE_BYTES_MAX {
            return Err(Failure::new(
                Reason::File(librorum_format::ErrorKind::OutOfRange),
                format!("a message of {len} bytes is too long: at most {MESSAGE_BYTES_MAX}"),
            ));
        }
        if !self.fill(len).await? {
            return Err(protocol(format!(
                "the stream ends {} bytes into a message of {len}",
                self.received.len
            )));
        }
        Ok(Some(self.received.take_front(len)))
    }

    /// The only message of a request.
    pub(super) async fn only<M: prost::Message + Default>(mut self) -> Result<M, Failure> {
        let Some(message) = self.next().await? else {
            return Err(Failure::new(Reason::Protocol, "the request has no message"));
        };
        M::decode(message).map_err(not_a_message)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is a function for map_err")]
fn not_a_message(error: prost::DecodeError) -> Failure {
    Failure::new(Reason::Protocol, format!("the request is no message of its kind: {error}"))
}

/// `librorum.v1.WriteRequest`, its bytes where they are.
#[derive(Debug, Default)]
pub(super) struct WritePart {
    pub(super) upload: u64,
    pub(super) offset: u64,
    pub(super) data: Chain,
}

/// Takes a message apart. As in every decoder, fields come in any order, the last one of a number counts,
/// and unknown ones are passed over.
pub(super) fn write_part(mut message: Chain) -> Result<WritePart, Failure> {
    let mut part = WritePart::default();
    while message.has_remaining() {
        let (field, wire) = decode_key(&mut message).map_err(not_a_message)?;
        match (field, wire) {
            (1, WireType::Varint) => {
                part.upload = decode_varint(&mut message).map_err(not_a_message)?;
            }
            (2, WireType::Varint) => {
                part.offset = decode_varint(&mut message).map_err(not_a_message)?;
            }
            (3, WireType::LengthDelimited) => {
                let len = decode_varint(&mut message).map_err(not_a_message)?;
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                if len > message.len {
                    let text = format!("`data` of {len} bytes in a message of {}", message.len);
                    return Err(Failure::new(Reason::Protocol, text));
                }
                part.data = message.take_front(len);
            }
            (field, wire) => {
                skip_field(wire, field, &mut message, DecodeContext::default())
                    .map_err(not_a_message)?;
            }
        }
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use librorum_rpc::proto::{file, v1};
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    #[test]
    fn a_message_by_hand_is_the_message_of_the_encoder() {
        for len in [1, 127, 128, 65_536, 1 << 20] {
            let data = Bytes::from(vec![7; len]);
            let rest = v1::ReadResponse { offset: 1 << 33, ..v1::ReadResponse::default() };
            let stock = v1::ReadResponse { data: data.clone(), ..rest.clone() };
            let head = head(1, len, rest.encoded_len());
            let by_hand = [&head[..], &data, &rest.encode_to_vec()].concat();
            assert_eq!(by_hand, message(&stock));

            let rest = file::DownloadFileResponse { data: None, offset: 5, total_size: i64::MAX };
            let stock = file::DownloadFileResponse {
                data: Some(file::download_file_response::Data::Chunk(data.clone())),
                ..rest.clone()
            };
            let head = self::head(2, len, rest.encoded_len());
            let by_hand = [&head[..], &data, &rest.encode_to_vec()].concat();
            assert_eq!(by_hand, message(&stock));
        }
    }

    /// A body in pieces of these lengths.
    fn body(bytes: &[u8], cuts: &[usize]) -> Body {
        let mut frames = VecDeque::new();
        let mut rest = Bytes::copy_from_slice(bytes);
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            frames.push_back(Frame::data(rest.split_to((*cut).clamp(1, rest.len()))));
        }
        Body::new(Known(frames))
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    proptest! {
        #[test]
        fn messages_survive_every_split(
            parts in prop::collection::vec((any::<u64>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..300)), 0..6),
            cuts in prop::collection::vec(1usize..400, 1..8),
        ) {
            let requests: Vec<v1::WriteRequest> = parts
                .iter()
                .map(|(upload, offset, data)| v1::WriteRequest {
                    upload: *upload, offset: *offset, data: data.clone().into(),
                })
                .collect();
            let bytes: Vec<u8> = requests.iter().flat_map(message).collect();
            run(async {
                let mut messages = Messages::new(body(&bytes, &cuts));
                for request in &requests {
                    let found = write_part(messages.next().await.unwrap().unwrap()).unwrap();
                    assert_eq!((found.upload, found.offset), (request.upload, request.offset));
                    let data: Vec<u8> = found.data.parts().flatten().copied().collect();
                    assert_eq!(data, request.data);
                }
                assert!(messages.next().await.unwrap().is_none());
            });
        }

        #[test]
        fn garbage_is_refused_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut chain = Chain::default();
            chain.push(Bytes::from(bytes.clone()));
            let ours = write_part(chain);
            let stock = v1::WriteRequest::decode(&bytes[..]);
            // The stock decoder also refuses a known field of another wire type.
            if let Ok(stock) = stock {
                let ours = ours.unwrap();
                assert_eq!((ours.upload, ours.offset, ours.data.len()), (stock.upload, stock.offset, stock.data.len()));
            }
        }
    }

    #[test]
    fn what_ends_early_is_an_error() {
        let whole = message(&v1::WriteRequest { upload: 1, offset: 2, data: vec![3; 100].into() });
        for len in 1..whole.len() {
            let cut = whole.slice(..len);
            run(async {
                let mut messages = Messages::new(body(&cut, &[64]));
                assert!(messages.next().await.is_err(), "{len}");
            });
        }
        let long = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]);
        run(async {
            let mut messages = Messages::new(body(&long, &[5]));
            assert!(messages.next().await.is_err());
        });
    }
}
