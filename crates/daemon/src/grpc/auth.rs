//! The door: nothing behind it is reached by a request of which nobody knows whose it is.
//!
//! On the local socket the kernel tells who the peer is. Over TCP there must be a bearer token, or a
//! client certificate with a name that the configuration gives to a user; this holds for loopback too,
//! which every process of the machine can reach, and for health and reflection.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use librorum_rpc::{Failure, Reason};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::TlsConnectInfo;
use tower::{Layer, Service};

use super::accounts::Accounts;
use super::call::{Context, deadline, new_trace_id};
use super::conn::{ConnectInfo, Connection, Peer};
use super::tokens::Tokens;
use crate::service::Caller;

/// What a client may call its request with, and where it is told what it was called: a hexadecimal
/// number.
const REQUEST_ID: http::HeaderName = http::HeaderName::from_static("x-request-id");

/// Who is let in.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub(super) tokens: Option<Arc<Tokens>>,
    /// Names of certificates, and whom each acts as.
    pub(super) certificates: Arc<BTreeMap<String, u32>>,
}

impl Door {
    fn caller<B>(
        &self,
        connection: &Connection,
        request: &http::Request<B>,
    ) -> Result<Caller, Failure> {
        let address = match &connection.peer {
            Peer::Local(caller) => return Ok(caller.clone()),
            Peer::Remote(address) => address,
        };
        let refuse = |message: &str| {
            tracing::warn!(%address, message, "a request is refused");
            Failure::new(Reason::Unauthenticated, message)
        };
        let uid = if let Some(header) = request.headers().get(http::header::AUTHORIZATION) {
            let token = bearer(header.as_bytes())
                .ok_or_else(|| refuse("`authorization` must be `Bearer TOKEN`"))?;
            let tokens = self
                .tokens
                .as_ref()
                .ok_or_else(|| refuse("this address takes client certificates, not tokens"))?;
            tokens.uid(token).ok_or_else(|| refuse("this token is not known here"))?
        } else {
            self.certified(request).ok_or_else(|| {
                refuse(
                    "say who you are: send `authorization: Bearer TOKEN` with a token of the daemon's \
                     token file, or use its local socket",
                )
            })?
        };
        Ok(Accounts::current().caller(uid))
    }

    /// The user of a client certificate, which rustls has verified.
    fn certified<B>(&self, request: &http::Request<B>) -> Option<u32> {
        let info = request.extensions().get::<TlsConnectInfo<ConnectInfo>>()?;
        let certificates = info.peer_certs()?;
        let leaf = webpki::EndEntityCert::try_from(certificates.first()?).ok()?;
        leaf.valid_dns_names()
            .chain(leaf.valid_uri_names())
            .find_map(|name| self.certificates.get(name).copied())
    }

    fn admit<B>(&self, request: &http::Request<B>) -> Result<Context, Failure> {
        let extensions = request.extensions();
        let connection = extensions
            .get::<ConnectInfo>()
            .or_else(|| {
                extensions.get::<TlsConnectInfo<ConnectInfo>>().map(TlsConnectInfo::get_ref)
            })
            .map(|info| Arc::clone(&info.0))
            .ok_or_else(|| {
                Failure::new(Reason::Unauthenticated, "nobody knows where this comes from")
            })?;
        Ok(Context {
            caller: self.caller(&connection, request)?,
            connection,
            trace_id: trace_id(request.headers()),
            deadline: deadline(request.headers()),
        })
    }
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn trace_id(headers: &http::HeaderMap) -> u64 {
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .filter(|&id| id != 0)
        .unwrap_or_else(new_trace_id)
}

impl<S> Layer<S> for Door {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, door: self.clone() }
    }
}

/// A service behind the door.
#[derive(Clone, Debug)]
pub(super) struct Guarded<S> {
    inner: S,
    door: Door,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let context = match self.door.admit(&request) {
            Ok(context) => context,
            Err(failure) => {
                let refused = Status::from(failure).into_http();
                return Box::pin(std::future::ready(Ok(refused)));
            }
        };
        let id = format!("{:016x}", context.trace_id);
        request.extensions_mut().insert(context);
        let answered = self.inner.call(request.map(|body| Body::new(Whole(body))));
        Box::pin(async move {
            let mut response = answered.await?;
            if let Ok(id) = http::HeaderValue::try_from(id) {
                response.headers_mut().insert(REQUEST_ID, id);
            }
            Ok(response)
        })
    }
}

/// A request's body that tells a client that broke off from one that has said everything: hyper and tonic
/// end both without an error, and half an upload would pass for a whole one.
struct Whole(Body);

impl http_body::Body for Whole {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
        let polled = Pin::new(&mut self.0).poll_frame(context);
        let why = match &polled {
            Poll::Ready(None) if !self.0.is_end_stream() => String::new(),
            Poll::Ready(Some(Err(error))) => format!(": {}", error.message()),
            Poll::Ready(_) | Poll::Pending => return polled,
        };
        // Not `cancelled`, as what broke off often says: tonic takes that for the end of a request.
        let broken = Status::aborted(format!("the client broke the stream off{why}"));
        Poll::Ready(Some(Err(broken)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_is_a_bearer() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        for other in [&b"Basic abc"[..], b"Bearer", b"", b"abc"] {
            assert_eq!(bearer(other), None);
        }
    }

    #[test]
    fn a_client_names_its_request() {
        let mut headers = http::HeaderMap::new();
        assert_ne!(trace_id(&headers), 0);
        headers.insert(REQUEST_ID, http::HeaderValue::from_static("00000000000000ff"));
        assert_eq!(trace_id(&headers), 255);
        headers.insert(REQUEST_ID, http::HeaderValue::from_static("not a number"));
        assert_ne!(trace_id(&headers), 255);
    }
}
